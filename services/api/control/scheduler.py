"""Assigns idle learners and rollout servers to queued runs.

`plan` decides from the facts alone; `Scheduler` carries out its decisions. The loop is level-triggered: each round
compares the database with Redis and writes only the difference, so restarting the API changes nothing.

A run starts with one learner and one rollout server; more servers join, up to `rollout.num_servers`, once no queued run
can use them. A run keeps its learner even while the learner is away, because unacknowledged groups carry its name; a
missing rollout server is replaced if another one is idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import msgspec
from redis.asyncio import Redis

from services.api.control.roll_call import RollCall
from services.api.live.journal import Journal
from services.api.storage.database import Database
from services.api.storage.runs import Run, active_runs, unfinished_runs
from services.contracts import streams
from services.contracts.heartbeat import START_FAILURES, ServiceRecord
from services.contracts.states import ACTIVE_STATES, RunState
from services.runtime.connection import as_text
from services.runtime.logs import get_logger

log = get_logger(__name__)
MAX_START_FAILURES = 5
SPOKEN: frozenset[str] = frozenset({"ready", "updating"})
"""A learner reports its run's state on the stream before its record shows one of these. Comparing times would not do,
since its clock may have been set between two processes."""


@dataclass(slots=True)
class Assigned:
    """One run with the services that it has or is to get."""

    run_id: str
    state: str
    num_servers: int
    learner: str | None
    servers: list[str] = field(default_factory=list)


def plan(runs: Sequence[Assigned], services: Sequence[ServiceRecord]) -> list[Assigned]:
    """The runs as they should be: queued runs that can start are `starting`, with their learner and servers.

    `runs` are in the order of the queue. The input is not modified.
    """
    runs = [Assigned(run.run_id, run.state, run.num_servers, run.learner, list(run.servers)) for run in runs]
    active = [run for run in runs if run.state in ACTIVE_STATES]
    taken = {name for run in active for name in (run.learner, *run.servers) if name is not None}
    alive = {record.instance: record for record in services}
    idle = [record for record in services if record.instance not in taken and record.state != "failed"]
    learners = [record for record in idle if record.leads_runs and record.state in ("idle", "ready")]
    servers = [record.instance for record in idle if record.kind == "rollout"]
    for run in runs:
        if run.state != "queued":
            continue
        learner = _choose_learner(run, learners)
        if learner is None or not servers:
            continue
        learners.remove(learner)
        run.state, run.learner, run.servers = "starting", learner.instance, [servers.pop(0)]
    for run in runs:
        if run.state in ("starting", "running", "paused"):
            _fill_servers(run, servers, alive)
    return runs


def _choose_learner(run: Assigned, learners: Sequence[ServiceRecord]) -> ServiceRecord | None:
    """An idle learner; the run's earlier one if it is idle, since pending groups carry its name."""
    fit = [record for record in learners if record.run_id in (None, run.run_id)]
    return next((record for record in fit if record.instance == run.learner), fit[0] if fit else None)


def _fill_servers(run: Assigned, idle: list[str], alive: dict[str, ServiceRecord]) -> None:
    """Give the run idle servers until `num_servers` of its servers are alive, dropping missing ones to make room."""
    num_alive = sum(name in alive for name in run.servers)
    while num_alive < run.num_servers and idle:
        gone = next((name for name in run.servers if name not in alive), None)
        if gone is not None and len(run.servers) >= run.num_servers:
            run.servers.remove(gone)
        run.servers.append(idle.pop(0))
        num_alive += 1


def hopeless(run: Assigned, records: dict[str, ServiceRecord]) -> str:
    """Why no server of this run will ever sample: each has failed to start its engine `MAX_START_FAILURES` times.

    Empty while any of them may. Such a run would hold its services indefinitely without training.
    """
    servers = [records.get(name) for name in run.servers]
    for server in servers:
        if server is None or server.run_id != run.run_id:
            return ""
        if int(server.details.get(START_FAILURES, 0)) < MAX_START_FAILURES:
            return ""
    faults = [f"{server.instance}: {server.details.get('fault', '')}" for server in servers if server is not None]
    return f"No rollout server can start its engine. {faults[0]}" if faults else ""


class Scheduler:
    """Consumes: unfinished runs, service records. Produces: states, assignments, the runs' keys in Redis."""

    def __init__(self, redis: Redis, database: Database, journal: Journal) -> None:
        self.redis = redis
        self.database = database
        self.journal = journal
        self.roll = RollCall(redis)

    async def step(self) -> None:
        """One round: decide, write the database, then bring Redis in line with it."""
        services = await self.roll.take()
        if services is not None:
            await self._decide(services)
        await self._write_redis()

    async def _decide(self, services: Sequence[ServiceRecord]) -> None:
        async with self.database.read() as session:
            runs = await unfinished_runs(session)
        planned = {item.run_id: item for item in plan([_assigned(run) for run in runs], services)}
        records = {record.instance: record for record in services}
        for run in runs:
            await self._carry_out(run, planned[run.id], records)
            if reason := hopeless(planned[run.id], records):
                await self._give_up(run.id, reason)

    async def _give_up(self, run_id: str, reason: str) -> None:
        async with self.database.write() as session:
            run = await session.get(Run, run_id)
            if run is None or run.state not in ("starting", "running", "paused"):
                return
            told = await self.journal.change_state(session, run, "failed", reason)
        self.journal.tell(told)
        log.error("run given up", run_id=run_id, reason=reason)

    async def _carry_out(self, seen: Run, item: Assigned, records: dict[str, ServiceRecord]) -> None:
        learner = records.get(item.learner) if item.learner else None
        lost = item.state in ("running", "paused") and _learner_lost(seen, learner)
        back = item.state == "starting" and _learner_back(seen, learner)
        known = learner is None or seen.learner_started_at == learner.started_at
        if item == _assigned(seen) and not lost and not back and known:
            return
        async with self.database.write() as session:
            run = await session.get(Run, seen.id)
            if run is None or run.state != seen.state:
                return  # changed in the meantime; the next round decides
            told = []
            new_servers = [name for name in item.servers if name not in run.rollout_servers]
            run.learner, run.rollout_servers = item.learner, item.servers
            if item.state == "starting" and run.state == "queued":
                told = await self.journal.change_state(session, run, "starting")
            elif lost:
                reason = f"learner {item.learner} " + ("is gone; waiting for it" if learner is None else "restarted")
                told = await self.journal.change_state(session, run, "starting", reason)
            elif back:
                told = await self.journal.change_state(
                    session, run, cast(RunState, run.learner_said), "learner is back"
                )
            if learner is not None and item.state in ACTIVE_STATES:
                run.learner_started_at = learner.started_at
        self.journal.tell(told)
        if lost:
            await self.journal.note(seen.id, "warning", f"Learner {item.learner} was lost; the run is starting again.")
        if new_servers:
            log.info("rollout servers assigned", run_id=seen.id, servers=new_servers, learner=item.learner)

    async def _write_redis(self) -> None:
        """Make the runs' keys, the set of runs and the assignments in Redis match the database."""
        async with self.database.read() as session:
            runs = await active_runs(session)
        wanted: dict[str, str] = {}
        for run in runs:
            await self._write_key(streams.config(run.id), msgspec.json.encode(run.config, order="deterministic"))
            await self._write_key(streams.desired(run.id), run.desired.encode())
            await self._write_key(streams.attempt(run.id), repr(run.queued_at).encode())
            wanted |= {name: run.id for name in (run.learner, *run.rollout_servers) if name}
        ids = {run.id for run in runs}
        present = {as_text(value) for value in await self.redis.smembers(streams.RUNS)}
        if ids - present:
            await self.redis.sadd(streams.RUNS, *(ids - present))
        if present - ids:
            await self.redis.srem(streams.RUNS, *(present - ids))
        await self._write_assignments(wanted)

    async def _write_assignments(self, wanted: dict[str, str]) -> None:
        prefix = streams.assignment("")
        keys = [as_text(key) async for key in self.redis.scan_iter(match=streams.assignment("*"), count=1000)]
        for key in keys:
            if key.removeprefix(prefix) not in wanted:
                await self.redis.delete(key)
        for instance, run_id in wanted.items():
            await self._write_key(streams.assignment(instance), run_id.encode())

    async def _write_key(self, key: str, value: bytes) -> None:
        if await self.redis.get(key) != value:
            await self.redis.set(key, value)


def _assigned(run: Run) -> Assigned:
    num_servers = int(run.config["rollout"]["num_servers"])
    return Assigned(run.id, run.state, num_servers, run.learner, list(run.rollout_servers))


def _learner_lost(run: Run, learner: ServiceRecord | None) -> bool:
    """Whether the learner is missing, or is another process that has not yet reported the run's state."""
    if learner is None:
        return True
    return run.learner_started_at not in (None, learner.started_at) and learner.state not in SPOKEN


def _learner_back(run: Run, learner: ServiceRecord | None) -> bool:
    """Whether the learner only seemed lost: the same process is alive again, and had reported the run's state
    before."""
    return (
        learner is not None
        and run.learner_started_at == learner.started_at
        and run.learner_said in ("running", "paused")
        and learner.state in SPOKEN
    )

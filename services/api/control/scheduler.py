"""Assigns idle learners and rollout servers to runs, evaluations and models on demand, as `assignment.plan` decides.

`services.api.control.assignment` decides from the facts alone; `Scheduler` carries out its decisions. The loop is
level-triggered: each round compares the database with Redis and writes only the difference, so restarting the API
changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, cast

import msgspec
from redis.asyncio import Redis

from services.api.control.assignment import Assigned, hopeless, plan, waits_for
from services.api.control.on_demand import OnDemand
from services.api.control.outlook import outlook
from services.api.control.roll_call import RollCall
from services.api.live.journal import Journal
from services.api.storage.database import Database
from services.api.storage.evaluations import EvaluationRow, unended_evaluations
from services.api.storage.history import newest_metrics
from services.api.storage.runs import Run, active_runs, runs_among, unfinished_runs
from services.contracts import streams
from services.contracts.heartbeat import ServiceRecord
from services.contracts.records import EvaluationState, QueuePlace
from services.contracts.states import ACTIVE_STATES, RunState
from services.runtime.connection import as_text
from services.runtime.logs import get_logger
from services.runtime.training import publish_training

log = get_logger(__name__)
LEAVE_SECONDS = 10.0
"""Time after an evaluation's end in which services may still look at its queues."""
SPOKEN: frozenset[str] = frozenset({"ready", "updating"})
"""A learner reports its run's state on the stream before its record shows one of these. Comparing times would not do,
since its clock may have been set between two processes."""


class Scheduler:
    """Consumes: unfinished runs, service records. Produces: states, assignments, the runs' keys in Redis."""

    def __init__(
        self,
        redis: Redis,
        database: Database,
        journal: Journal,
        on_demand: OnDemand,
        on_end: Callable[[str], Awaitable[None]],
        max_runs_per_key: int = 0,
    ) -> None:
        """`on_end` is told the id of each evaluation that is given up."""
        self.redis = redis
        self.max_runs_per_key = max_runs_per_key
        self.database = database
        self.journal = journal
        self.on_demand = on_demand
        self.on_end = on_end
        self.roll = RollCall(redis)
        self.places: Mapping[str, QueuePlace] = {}
        """Why queued runs wait, as of the newest round."""
        self._left: dict[str, float] = {}
        """Evaluations and models that have left `streams.RUNS`, and when."""

    def place(self, run: Run) -> QueuePlace | None:
        """Why the run waits, if it is queued and the newest round has seen it."""
        return self.places.get(run.id) if run.state == "queued" else None

    async def step(self) -> None:
        """One round: decide, write the database, then bring Redis in line with it."""
        services = await self.roll.take()
        if services is not None:
            await self._decide(services)
            await publish_training(self.redis, services)
        await self._write_redis()

    async def _decide(self, services: Sequence[ServiceRecord]) -> None:
        async with self.database.read() as session:
            runs = await unfinished_runs(session)
            evaluations = await unended_evaluations(session)
        wanted = [*map(_assigned, runs), *map(_assigned_to_evaluation, evaluations), *self.on_demand.assigned()]
        works = plan(wanted, services, self.max_runs_per_key)
        planned = {item.run_id: item for item in works}
        # Evaluations and models give their server up to a run that wants it, so they keep no run waiting.
        places = await self._places(runs, [item for item in works if item.kind == "run"], services)
        if places != self.places:
            self.places = places
            self.database.version += 1  # cached responses contain them
        records = {record.instance: record for record in services}
        for run in runs:
            await self._carry_out(run, planned[run.id], records)
            if reason := hopeless(planned[run.id], records):
                await self._give_up(run.id, reason)
        for row in evaluations:
            await self._carry_out_evaluation(row, planned[row.id], works, records)
        await self.on_demand.settle(works, records)

    async def _carry_out_evaluation(
        self, seen: EvaluationRow, item: Assigned, works: Sequence[Assigned], records: dict[str, ServiceRecord]
    ) -> None:
        failure = hopeless(item, records)
        reason = failure or waits_for(item, works, records)
        if item == _assigned_to_evaluation(seen) and reason == seen.reason:
            return
        async with self.database.write() as session:
            row = await session.get(EvaluationRow, seen.id)
            if row is None or row.state != seen.state:
                return
            row.state = "failed" if failure else cast(EvaluationState, item.state)
            row.reason, row.rollout_servers = reason, item.servers
            if item.state == "running" and row.started_at is None:
                row.started_at = time.time()
            if failure:
                row.finished_at, row.rollout_servers = time.time(), []
        log.info("evaluation assigned", evaluation=seen.id, servers=item.servers, reason=reason)
        if failure:
            await self.on_end(seen.id)

    async def _places(
        self, runs: Sequence[Run], decided: Sequence[Assigned], services: Sequence[ServiceRecord]
    ) -> Mapping[str, QueuePlace]:
        if all(item.state != "queued" for item in decided):
            return {}
        async with self.database.read() as session:
            paces = await newest_metrics(session, [run.id for run in runs if run.state in ACTIVE_STATES], "seconds")
        return outlook(decided, services, _seconds_left(runs, paces), self.max_runs_per_key)

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
            evaluations = [row for row in await unended_evaluations(session) if row.state == "running"]
        wanted: dict[str, str] = {}
        for run in runs:
            await self._write_key(streams.config(run.id), msgspec.json.encode(run.config, order="deterministic"))
            await self._write_key(streams.desired(run.id), run.desired.encode())
            await self._write_key(streams.attempt(run.id), repr(run.queued_at).encode())
            wanted |= {name: run.id for name in (run.learner, *run.rollout_servers) if name}
        for row in evaluations:
            await self._write_key(streams.config(row.id), msgspec.json.encode(row.config, order="deterministic"))
            if row.weights is not None:
                await self.redis.hset(streams.weights(row.id), mapping=cast(Any, row.weights))
            wanted |= dict.fromkeys(row.rollout_servers, row.id)
        models = [model for model in self.on_demand.models if model.server is not None]
        for model in models:
            await self._write_key(streams.config(model.id), model.config.model_dump_json().encode())
            if model.weights is not None:
                await self.redis.hset(streams.weights(model.id), mapping=cast(Any, model.weights))
            wanted[str(model.server)] = model.id
        ids = {run.id for run in runs} | {row.id for row in evaluations} | {model.id for model in models}
        present = {as_text(value) for value in await self.redis.smembers(streams.RUNS)}
        if ids - present:
            await self.redis.sadd(streams.RUNS, *(ids - present))
        if present - ids:
            await self.redis.srem(streams.RUNS, *(present - ids))
        await self._write_assignments(wanted)
        await self._clear_queues(present - ids)

    async def _clear_queues(self, left: set[str]) -> None:
        """Delete the queues of evaluations and models that have ended, once no service works on them any longer."""
        now = time.monotonic()
        self._left |= dict.fromkeys(left, now)
        due = [run_id for run_id, since in self._left.items() if now - since > LEAVE_SECONDS]
        if not due:
            return
        async with self.database.read() as session:
            unended = {row.id for row in await unended_evaluations(session)}
            kept = unended | await runs_among(session, due)
        for run_id in due:
            del self._left[run_id]
            if run_id not in kept:
                await self.redis.delete(*streams.run_keys(run_id))

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


def _seconds_left(runs: Sequence[Run], paces: Mapping[str, float]) -> dict[str, float]:
    """How long each run still takes. `paces`: seconds of the newest step of runs in progress; a run that has none is
    expected to have their mean."""
    if not paces:
        return {}
    usual = fmean(paces.values())
    steps = {run.id: max(0, int(run.config["training"]["steps"]) - run.step) for run in runs}
    return {run_id: count * paces.get(run_id, usual) for run_id, count in steps.items()}


def _assigned(run: Run) -> Assigned:
    rollout = run.config["rollout"]
    return Assigned(
        run.id,
        run.state,
        int(rollout["num_servers"]),
        run.learner,
        list(run.rollout_servers),
        run.created_by,
        num_gpus=int(rollout.get("tensor_parallel_size", 1)),
        shares_gpu=bool(rollout.get("share_gpu", False)),
    )


def _assigned_to_evaluation(row: EvaluationRow) -> Assigned:
    num_gpus = int(row.config["rollout"].get("tensor_parallel_size", 1))
    return Assigned(row.id, row.state, 1, None, list(row.rollout_servers), kind="evaluation", num_gpus=num_gpus)


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

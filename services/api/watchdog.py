"""A stall names itself: who waits, for what, since when, and which part of the ring does not deliver it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from services.api.database import Database
from services.api.fleet.queues import QueueState, queue_states
from services.api.journal import Journal
from services.api.runs.repository import unfinished_runs
from services.contracts.services import ServiceKind, ServiceRecord
from services.runtime.registry import list_services

STALL_SECONDS = 60.0
"""A wait longer than this is noted on the run."""
_CONSUMER: dict[str, ServiceKind] = {
    "prompts": "rollout",
    "completions": "verifier",
    "scored": "learner",
    "evaluated": "learner",
}


@dataclass(frozen=True, slots=True)
class Wait:
    """One instance of a run waits for something."""

    run_id: str
    kind: ServiceKind
    instance: str
    waiting_for: str
    seconds: float

    @property
    def label(self) -> str:
        """`waiting_for` with its numbers taken out, so that the set of metric labels stays small."""
        return re.sub(r"\d+(\.\d+)?", "n", self.waiting_for)[:80]


@dataclass(frozen=True, slots=True)
class Stall:
    """A run does not move. `text` says who waits for what, and where the work lies."""

    run_id: str
    key: str
    """The same as long as the same thing is the matter."""
    text: str


def find_waits(services: Sequence[ServiceRecord], run_ids: Sequence[str], now: float) -> list[Wait]:
    """Every present wait of instances that work for one of `run_ids`. An instance without a run waits for no one."""
    return [
        Wait(
            record.run_id,
            record.kind,
            record.instance,
            record.waiting_for,
            max(0.0, now - (record.waiting_since or now)),
        )
        for record in services
        if record.run_id in run_ids and record.run_id is not None and record.waiting_for
    ]


def find_stalls(
    waits: Sequence[Wait],
    queues: Sequence[QueueState],
    services: Sequence[ServiceRecord],
    assigned: Mapping[str, Sequence[str]],
    limit_seconds: float,
) -> list[Stall]:
    """What keeps runs from moving.

    Args:
        waits: from `find_waits`.
        queues: depth and age of each run's streams.
        services: all records.
        assigned: run id to its assigned instances (learner and rollout servers); only runs that should move.
        limit_seconds: how long a wait or a message may take before it counts.

    Two kinds: a service that the run needs is not there (at once, whatever the limit); something waits too long.
    """
    stalls = []
    alive = {record.instance for record in services}
    kinds = {record.kind for record in services}
    for run_id, instances in assigned.items():
        for name in instances:
            if name not in alive:
                stalls.append(Stall(run_id, f"gone:{name}", f"{name} gives no sign of life; the run waits for it."))
        if "verifier" not in kinds:
            stalls.append(Stall(run_id, "no-verifier", "No verifier is running; completions cannot be judged."))
    for queue in queues:
        if queue.run_id in assigned and queue.depth and queue.oldest_seconds > limit_seconds:
            consumer = _CONSUMER.get(queue.stream)
            if consumer in ("rollout", "verifier"):
                text = (
                    f"{queue.depth} messages on {queue.stream} wait for a {consumer}; "
                    f"the oldest for {queue.oldest_seconds:.0f} s."
                )
                stalls.append(Stall(queue.run_id, f"queue:{queue.stream}", text))
    for wait in waits:
        if wait.run_id in assigned and wait.seconds > limit_seconds:
            text = (
                f"{wait.instance} has waited {wait.seconds:.0f} s for {wait.waiting_for}{_where(wait.run_id, queues)}."
            )
            stalls.append(Stall(wait.run_id, f"wait:{wait.instance}:{wait.label}", text))
    return stalls


def _where(run_id: str, queues: Sequence[QueueState]) -> str:
    """Where the run's groups lie at the moment."""
    lying = [f"{queue.stream} {queue.depth}" for queue in queues if queue.run_id == run_id and queue.depth]
    return f" (messages in hand or waiting: {', '.join(lying)})" if lying else " (all its queues are empty)"


class Watchdog:
    """Consumes: records, queue depths. Produces: a note for each new stall, one when it is over; the present waits."""

    def __init__(
        self,
        redis: Redis,
        database: Database,
        journal: Journal,
        limit_seconds: float = STALL_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.redis = redis
        self.database = database
        self.journal = journal
        self.limit_seconds = limit_seconds
        self.clock = clock
        self.waits: list[Wait] = []
        self.stalls: dict[tuple[str, str], Stall] = {}

    async def step(self) -> None:
        """One round."""
        services = await list_services(self.redis)
        async with self.database.read() as session:
            runs = await unfinished_runs(session)
        moving = {run.id: [name for name in (run.learner, *run.rollout_servers) if name] for run in runs}
        moving = {run.id: moving[run.id] for run in runs if run.state in ("running", "starting")}
        queues = await queue_states(self.redis, list(moving))
        self.waits = find_waits(services, [run.id for run in runs], self.clock())
        found = {
            (stall.run_id, stall.key): stall
            for stall in find_stalls(self.waits, queues, services, moving, self.limit_seconds)
        }
        old, self.stalls = self.stalls, found
        for key in found.keys() - old.keys():
            await self.journal.note(key[0], "warning", f"Stalled: {found[key].text}")
        for key in old.keys() - found.keys():
            await self.journal.note(key[0], "info", f"Moving again. It was: {old[key].text}")

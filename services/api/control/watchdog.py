"""The loop that detects stalls and notes their beginning and end on the run. `stalls` decides what counts as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from msgspec import structs
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.api.control.roll_call import RollCall
from services.api.live.board import Board
from services.api.live.journal import Journal
from services.api.live.queues import queue_states
from services.api.live.stalls import Fleet, Stall, Wait, find_stalls, find_waits, no_queue_server
from services.api.storage.database import Database
from services.api.storage.runs import active_runs
from services.contracts.heartbeat import ServiceRecord
from services.runtime.connection import is_outage
from services.runtime.queue.server_log import queue_server_fault

SETTLED_SECONDS = 10.0
"""How long a queue server must have answered to count as recovered."""


class Silence:
    """How long each instance has made no progress, by the token counts that it reports."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[tuple[float, int, int], float]] = {}

    def seconds(self, services: Sequence[ServiceRecord]) -> dict[str, float]:
        """Instance to seconds, as of this call; 0 for a process that is seen for the first time."""
        now = self._clock()
        seen = {}
        for record in services:
            state = (record.started_at, record.tokens_total, record.tokens_unfinished)
            old = self._seen.get(record.instance)
            seen[record.instance] = old if old is not None and old[0] == state else (state, now)
        self._seen = seen
        return {name: now - since for name, (_, since) in seen.items()}


class Watchdog:
    """Consumes: records, queue depths. Produces: a note when a stall begins and when it ends; the current waits; the
    stalls on the board."""

    def __init__(
        self,
        redis: Redis,
        database: Database,
        journal: Journal,
        board: Board,
        home: Path,
        limit_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.redis = redis
        self.database = database
        self.journal = journal
        self.board = board
        self.limit_seconds = limit_seconds
        self.home = home
        self.silence = Silence(clock)
        self._clock = clock
        self.roll = RollCall(redis, clock)
        self._away_since: float | None = None
        """When the queue server's outage began, if there is one."""
        self._away_at = 0.0
        """When it was last seen to be unavailable. Between two crashes it is up briefly, and may accept small
        writes."""
        self._watched_since: dict[str, float] = {}
        """When each run was first seen moving. Time while it was paused, or while the deployment or its queue server
        was down, does not count as waiting."""
        self._began: float | None = None
        self._heard: set[str] = set()
        """Instances and kinds of service seen so far; others may still be starting."""
        self.waits: list[Wait] = []
        self.stalls: dict[tuple[str, str], Stall] = {}

    async def step(self) -> None:
        """One round. While the queue server is unavailable, every moving run waits for it.

        A queue server whose disk is full is not queried: it is up only briefly, with all heartbeats expired.
        """
        async with self.database.read() as session:
            runs = await active_runs(session)
        moving = {
            run.id: [run.learner, *run.rollout_servers]
            for run in runs
            if run.learner and run.state in ("running", "starting")
        }
        if fault := queue_server_fault(self.home):
            await self._without_queue_server(list(moving), fault)
            return
        try:
            services = await self.roll.take()
            queues = await queue_states(self.redis, list(moving))
        except RedisError as error:
            if is_outage(error):
                says = "" if isinstance(error, RedisConnectionError | RedisTimeoutError) else str(error)
                await self._without_queue_server(list(moving), says and f"The queue server rejects writes: {says}")
            raise
        if services is None or (self._away_since is not None and self._clock() - self._away_at < SETTLED_SECONDS):
            return  # it was unavailable until a moment ago
        self._away_since = None
        self.waits = find_waits(services, [run.id for run in runs])
        fleet = Fleet(services, moving, self.silence.seconds(services))
        watched = self._watch(moving)
        found = find_stalls(
            [replace(wait, seconds=min(wait.seconds, watched.get(wait.run_id, 0.0))) for wait in self.waits],
            [
                structs.replace(queue, oldest_seconds=min(queue.oldest_seconds, watched[queue.run_id]))
                for queue in queues
            ],
            fleet,
            self.limit_seconds,
        )
        found = self._without_late_starters(found, services)
        await self._note({(stall.run_id, stall.key): stall for stall in found})

    def _watch(self, run_ids: Collection[str]) -> dict[str, float]:
        """Seconds for which each of these runs has been seen moving without interruption."""
        now = self._clock()
        self._watched_since = {run_id: self._watched_since.get(run_id, now) for run_id in run_ids}
        return {run_id: now - since for run_id, since in self._watched_since.items()}

    def _without_late_starters(self, stalls: Sequence[Stall], services: Sequence[ServiceRecord]) -> list[Stall]:
        """Leave out missing instances that have never been seen, while they may still be starting along with this
        process."""
        now = self._clock()
        self._began = now if self._began is None else self._began
        self._heard |= {record.instance for record in services} | {record.kind for record in services}
        if now - self._began >= self.limit_seconds:
            return list(stalls)
        return [item for item in stalls if item.culprit.cause != "gone" or item.culprit.instance in self._heard]

    async def _without_queue_server(self, run_ids: Sequence[str], fault: str) -> None:
        """Add this stall to the existing ones, with the text that it had when it was first noted."""
        self._watched_since.clear()
        now = self._away_at = self._clock()
        self._away_since = now if self._away_since is None else self._away_since
        found = dict(self.stalls)
        for stall in no_queue_server(run_ids, fault, now - self._away_since):
            key = (stall.run_id, stall.key)
            found[key] = replace(found.get(key, stall), seconds=stall.seconds)
        await self._note(found)

    async def _note(self, found: dict[tuple[str, str], Stall]) -> None:
        """Make these the current stalls, and note each that has begun or ended."""
        old, self.stalls = self.stalls, found
        self.board.stalls = list(found.values())  # set here, since other loops may hang with the queue server
        for key in found.keys() - old.keys():
            await self.journal.note(key[0], "warning", f"Stalled: {found[key].text}")
        for key in old.keys() - found.keys():
            await self.journal.note(key[0], "info", f"Moving again. The stall was: {old[key].text}")

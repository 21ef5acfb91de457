"""The weight pusher: keeps every rollout server on its run's newest published weights, verified, or out of rotation.

Level-triggered: each round compares the published weights with what every assigned server was last confirmed to hold,
and starts one task for each server that differs. Servers are updated concurrently and independently; intermediate
versions are skipped, since a task takes the newest version when it starts. A failed server is retried after increasing
pauses until a whole update succeeds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from redis.asyncio import Redis

from services.api.control.weight_client import PushFailedError, Target, TransportFailedError, WeightClient
from services.api.live.journal import Journal
from services.api.live.signals import Signals
from services.api.storage import history
from services.api.storage.database import Database
from services.api.storage.runs import active_runs
from services.contracts import streams
from services.contracts.heartbeat import ServiceRecord
from services.contracts.pauses import growing_pause
from services.contracts.records import WeightPush
from services.runtime.connection import as_text
from services.runtime.logs import get_logger
from services.runtime.presence import list_services

log = get_logger(__name__)
FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 15.0
MAX_FAST_FAILURES = 3
"""After this many consecutive failures a server uses the store only; each failure may stop it for half a minute."""


@dataclass(slots=True)
class ServerWeights:
    """What the pusher knows about one rollout server."""

    run_id: str
    started_at: float
    """Start time of the server process that this describes."""
    confirmed: Target | None = None
    """The weights that the server was last confirmed to hold and to sample from."""
    num_failures: int = 0
    """Failed attempts since the last success."""
    samples_on: bool = False
    """The last attempt failed before it touched the server's weights, so the server keeps sampling with older ones."""
    retry_at: float = 0.0
    """Monotonic time before which no attempt starts."""
    error: str = ""
    num_fast_failures: dict[str, int] = field(default_factory=dict)
    """Consecutive failures of the fast transport, by the learner's offer."""

    @property
    def is_out(self) -> bool:
        """Out of rotation: it samples nothing until an update succeeds."""
        return self.num_failures > 0 and not self.samples_on


class Pusher:
    """Consumes: published weights, assigned servers' records. Produces: updated servers, rows of weight pushes."""

    def __init__(
        self,
        redis: Redis,
        database: Database,
        journal: Journal,
        client: WeightClient,
        signals: Signals,
        on_push: Callable[[WeightPush], None],
    ) -> None:
        self.redis = redis
        self.database = database
        self.journal = journal
        self.client = client
        self.signals = signals
        self.on_push = on_push
        self.servers: dict[str, ServerWeights] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def step(self) -> None:
        """One round: start the updates that are due, without waiting for them."""
        records = {record.instance: record for record in await list_services(self.redis)}
        async with self.database.read() as session:
            runs = await active_runs(session)
        assigned: set[str] = set()
        for run in runs:
            target = await self._published(run.id)
            for instance in run.rollout_servers:
                assigned.add(instance)
                record = records.get(instance)
                if target is not None and record is not None and _engine_is_up(record, run.id):
                    self._start_if_due(record, run.id, target)
        for instance in self.servers.keys() - assigned - self._tasks.keys():
            del self.servers[instance]

    async def close(self) -> None:
        """Cancel updates in flight; the next API process starts them again."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _published(self, run_id: str) -> Target | None:
        values = await self.redis.hgetall(streams.weights(run_id))
        if not values:
            return None
        fields = {as_text(key): as_text(value) for key, value in values.items()}
        return Target(int(fields["version"]), fields["path"], fields["checksum"], fields.get("transfer", ""))

    def _start_if_due(self, record: ServiceRecord, run_id: str, target: Target) -> None:
        server = self.servers.get(record.instance)
        if server is None or server.run_id != run_id or server.started_at != record.started_at:
            server = ServerWeights(run_id, record.started_at)
            self.servers[record.instance] = server
        busy = record.instance in self._tasks
        if busy or server.confirmed == target or time.monotonic() < server.retry_at:
            return
        # A server that reports the right version and has not failed since only needs to be confirmed.
        check_first = record.weight_version == target.version and not server.num_failures
        task = asyncio.create_task(self._bring(record, server, target, check_first))
        self._tasks[record.instance] = task
        task.add_done_callback(lambda done: self._done(record.instance, done))

    def _done(self, instance: str, task: asyncio.Task[None]) -> None:
        del self._tasks[instance]
        self.signals.push.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("weight push not recorded", server=instance, error=str(error), exc_info=error)

    async def _bring(self, record: ServiceRecord, server: ServerWeights, target: Target, check_first: bool) -> None:
        """Make one attempt to update one server."""
        at, started = time.time(), time.monotonic()
        transport, error, samples_on = "store", "", False
        try:
            if check_first and await self.client.confirm(record.url, target):
                server.confirmed = target
                return
            transport = await self._update(record, server, target)
        except PushFailedError as fault:
            error, samples_on = fault.message, fault.samples_on
        seconds = time.monotonic() - started
        was_out, was_told = server.is_out, server.num_failures > 0
        server.samples_on = samples_on
        if error:
            server.confirmed, server.error = None, error
            server.num_failures += 1
            pause = growing_pause(FIRST_PAUSE_SECONDS, server.num_failures, MAX_PAUSE_SECONDS)
            server.retry_at = time.monotonic() + pause
        else:
            server.confirmed, server.num_failures, server.error, server.retry_at = target, 0, "", 0.0
        push = WeightPush(
            run_id=server.run_id,
            version=target.version,
            instance=record.instance,
            at=at,
            seconds=seconds,
            error=error,
            transport=transport,
        )
        await self._record(push)
        await self._tell(push, server, was_out, was_told)

    async def _tell(self, push: WeightPush, server: ServerWeights, was_out: bool, was_told: bool) -> None:
        """Note on the run that a server started to fail, fails in a different way, or recovered."""
        if push.error and not (was_told and was_out == server.is_out):
            place = "is out of rotation" if server.is_out else "keeps sampling with older weights"
            why = f"because pushing version {push.version} failed: {push.error}"
            text = f"Rollout server {push.instance} {place}, {why}"
            await self.journal.note(push.run_id, "error", text)
        if not push.error and was_told:
            place = "is back in rotation at" if was_out else "has loaded"
            text = f"Rollout server {push.instance} {place} version {push.version}."
            await self.journal.note(push.run_id, "info", text)

    async def _update(self, record: ServiceRecord, server: ServerWeights, target: Target) -> str:
        """Update by the learner's fast transport if it offers one; otherwise, or if that fails, from the store. Returns
        the transport that was used."""
        if target.brings_folder:
            await self.client.update(record.url, target, fast=True)
            return target.transport
        if target.transfer and server.num_fast_failures.get(target.transfer, 0) < MAX_FAST_FAILURES:
            try:
                await self.client.update(record.url, target, fast=True)
                server.num_fast_failures.clear()
                return target.transport
            except TransportFailedError as error:
                failures = server.num_fast_failures.get(target.transfer, 0) + 1
                server.num_fast_failures = {target.transfer: failures}
                is_last = failures == MAX_FAST_FAILURES
                last = " It will not be retried until the learner or the server restarts." * is_last
                text = f"Rollout server {record.instance} loads version {target.version} from the store, because the"
                await self.journal.note(
                    server.run_id, "warning", f"{text} fast transport failed: {error.message}{last}"
                )
        await self.client.update(record.url, target)
        return "store"

    async def _record(self, push: WeightPush) -> None:
        fields = {"run_id": push.run_id, "server": push.instance, "version": push.version}
        self.on_push(push)
        if push.error:
            log.warning("weight push failed", error=push.error, **fields)
        else:
            log.info("weights pushed", seconds=push.seconds, transport=push.transport, **fields)
        async with self.database.write() as session:
            await history.store(session, push)


def _engine_is_up(record: ServiceRecord, run_id: str) -> bool:
    """Whether the server has accepted its assignment and its engine is up; a starting engine loads the weights on its
    own."""
    return record.run_id == run_id and record.state in ("ready", "updating", "failed")

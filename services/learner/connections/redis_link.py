"""The learner's connection to Redis, on an event loop in its own thread, so that training never waits for a socket.

Three loops run concurrently: `_feed` (prompts), `_receive` (scored groups) and `_watch` (the desired state and the
progress report). The training thread reads plain attributes and a queue, and hands over events to send.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar, cast, get_args

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.contracts import streams
from services.contracts.errors import MalformedMessageError, TurnoutError, UnavailableError
from services.contracts.events import Event, Note, RunStateChanged
from services.contracts.messages import ScoredGroup
from services.contracts.run_config import RunConfig, read_run_config
from services.contracts.states import DesiredState, RunState
from services.learner.connections.farewell import end_when_written
from services.learner.connections.progress_pipe import EXIT_ORPHANED, Progress, ProgressPipe
from services.learner.groups.feeder import Feeder
from services.runtime.connection import as_text, connect
from services.runtime.logs import get_logger
from services.runtime.process import LoopThread
from services.runtime.queue.queue import Delivery, Queue
from services.runtime.settings import Settings

log = get_logger(__name__)
T = TypeVar("T")

CONSUMER = "learner"
"""Consumer name of every instance: one learner at a time serves a run, and it takes over its predecessor's messages."""
POLL_SECONDS = 0.25


class RunLink:
    """Everything that the training thread needs from outside the process."""

    def __init__(self, settings: Settings, run_id: str) -> None:
        self.run_id = run_id
        self.source = settings.instance_name("learner")
        self.progress = Progress()
        self.desired: DesiredState = "running"
        self.published_version = 0
        """Newest version in the weight store that has been announced to the servers."""
        self.num_untrained = 0
        """Set by the training thread: gives the feeder credit for the groups dropped or replaced."""
        self.arrivals: queue.SimpleQueue[Delivery[ScoredGroup]] = queue.SimpleQueue()
        self.num_replayed = 0
        """Number of arrivals that a predecessor had received but not acknowledged."""
        self.feeder: Feeder | None = None
        self._in_hand: set[str] = set()
        """Ids of scored groups that have arrived and are not acknowledged; used on the loop only."""
        self._announced: dict[str, str] = {}
        self._pipe = ProgressPipe()
        self._reporting = threading.Lock()
        self._thread = LoopThread()
        self._tasks: list[asyncio.Task[None]] = []
        self._fault: BaseException | None = None
        self._wake: asyncio.Event = self.call(_event())
        self.redis: Redis = self.call(_connect(settings.redis_url))
        replicas = settings.redis_replicas
        self.queue = Queue(self.redis, streams.GROUP_LEARNER, CONSUMER, num_replicas=replicas)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it."""
        return self._thread.call(coroutine)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop without waiting."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._thread.loop)

    def wanted(self) -> DesiredState:
        """The state that the user wants the run to be in."""
        return self.desired

    def read_config(self) -> RunConfig:
        """The run's configuration. Raises `UnavailableError` if Redis does not have it."""
        text = self.call(_reply(self.redis.get(streams.config(self.run_id))))
        if text is None:
            raise UnavailableError(
                f"Redis has no configuration for run {self.run_id}.", remedy="Start the run through the API."
            )
        return read_run_config(text)

    def read_weights(self) -> dict[str, str]:
        """The `weights` hash: version, path and checksum of the newest published weights; empty if there are none."""
        values = self.call(_reply(self.redis.hgetall(streams.weights(self.run_id))))
        return {as_text(name): as_text(value) for name, value in values.items()}

    def announce(self, weights: dict[str, str]) -> None:
        """Announce published weights by writing the `weights` hash."""
        self._announced = weights
        self.call(_reply(self.redis.hset(streams.weights(self.run_id), mapping=cast(Any, weights))))

    def withdraw_offer(self) -> None:
        """Withdraw the offer of an earlier learner."""
        self.call(_reply(self.redis.hdel(streams.weights(self.run_id), "transfer")))

    def announce_again(self) -> None:
        """Restore the `weights` hash if Redis has lost it. Otherwise servers would wait for a version that is never
        announced."""
        if self._announced and self.read_weights() != self._announced:
            self.announce(self._announced)
            self.note(
                f"Redis lost the announcement of weight version {self._announced['version']}; announced it again.",
                "warning",
            )

    def start(self, feeder: Feeder) -> None:
        """Start the loops. Groups that a predecessor left unacknowledged arrive first, in stream order."""
        self.feeder = feeder
        self.call(self._start(feeder))

    async def _start(self, feeder: Feeder) -> None:
        await feeder.read_cursor()
        loops = (self._feed(feeder), self._receive(), self._watch())
        self._tasks = [asyncio.create_task(self._guard(loop)) for loop in loops]

    async def _guard(self, loop: Coroutine[Any, Any, None]) -> None:
        try:
            await loop
        except Exception as error:
            log.error("learner loop failed", error=str(error), exc_info=error)
            self._fault = error

    def check(self) -> None:
        """Raise the exception that ended one of the loops, if one has ended."""
        if self._fault is not None:
            raise self._fault

    def wake_feeder(self) -> None:
        """Tell the feeder that it may have more credit."""
        self._thread.loop.call_soon_threadsafe(self._wake.set)

    def emit(self, event: Event) -> None:
        """Send an event and wait until Redis has it. Events are sent in the order of the calls."""
        self.call(self._emit(event))

    async def _emit(self, event: Event) -> None:
        await self.queue.publish(streams.EVENTS, event)

    def emit_state(self, state: RunState, reason: str = "") -> None:
        self.emit(RunStateChanged(run_id=self.run_id, at=time.time(), state=state, reason=reason))

    def note(self, text: str, level: str = "info") -> None:
        log.info(text, run_id=self.run_id)
        self.emit(Note(run_id=self.run_id, at=time.time(), level=cast(Any, level), source=self.source, text=text))

    def acknowledge(self, deliveries: list[Delivery[ScoredGroup]]) -> None:
        if deliveries:
            self.call(self._acknowledge(deliveries))

    async def _acknowledge(self, deliveries: list[Delivery[ScoredGroup]]) -> None:
        await self.queue.acknowledge(deliveries)
        self._in_hand.difference_update(delivery.message_id for delivery in deliveries)

    def acknowledge_rest(self) -> None:
        """Once the run is trained to its end, acknowledge what a learner that died after its last checkpoint left."""
        self.call(self._acknowledge_rest())

    async def _acknowledge_rest(self) -> None:
        for stream in (streams.scored(self.run_id), streams.evaluated(self.run_id)):
            await self.queue.acknowledge(await self.queue.own_pending(stream, ScoredGroup))

    def report(self, **changes: Any) -> None:
        """Change the progress that the service sees within a second. Called by the training and the writer thread."""
        with self._reporting:
            self.progress = msgspec.structs.replace(self.progress, **changes)

    def send_progress(self) -> None:
        """Send the progress immediately."""
        self._pipe.write(self.progress)

    async def _feed(self, feeder: Feeder) -> None:
        """Consumes credit (published weights, drops, replacements); produces tasks on `prompts`; waits for more credit,
        which comes from publishing, dropping, replacing and resuming. Checks every second if a wake-up was lost."""
        while True:
            if self.desired == "running":
                await feeder.feed(self.published_version, self.num_untrained)
            try:
                await asyncio.wait_for(self._wake.wait(), timeout=1.0)
            except TimeoutError:
                pass
            self._wake.clear()

    async def _receive(self) -> None:
        """Consumes `scored`; produces arrivals for the training thread; waits for verifiers. The feeder's credit bounds
        the arrivals, so their queue needs no limit."""
        stream = streams.scored(self.run_id)
        replayed = await self.queue.own_pending(stream, ScoredGroup)
        self.num_replayed = len(replayed)
        self._arrive(replayed)
        while True:
            arrived = await self.queue.receive([stream], ScoredGroup, count=64, block_seconds=1.0)
            self._arrive(arrived or await self.queue.missed(stream, ScoredGroup, self._in_hand))

    def _arrive(self, deliveries: list[Delivery[ScoredGroup]]) -> None:
        for delivery in deliveries:
            self._in_hand.add(delivery.message_id)
            self.arrivals.put(delivery)

    async def _watch(self) -> None:
        """Consumes the desired state; produces progress lines; never waits for long."""
        reported_at = 0.0
        while True:
            value = await self.redis.get(streams.desired(self.run_id))
            desired = "running" if value is None else as_text(value)
            if desired in get_args(DesiredState) and desired != self.desired:
                self.desired = cast(DesiredState, desired)
                self._wake.set()
            if time.monotonic() - reported_at >= 1.0:
                reported_at = time.monotonic()
                try:
                    self.send_progress()
                except OSError:
                    log.error("learner service gone, exiting")
                    await asyncio.to_thread(end_when_written, EXIT_ORPHANED)
            await asyncio.sleep(POLL_SECONDS)

    def close(self) -> None:
        try:
            self.call(self._close())
        except (RedisError, TurnoutError, OSError) as error:
            log.warning("link not closed cleanly", error=str(error))
        self._thread.close()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        await self.redis.aclose()


def check_scored(message: Any, stream: str, vocabulary_size: int) -> None:
    """Check a scored group at the learner's border, before the model computes with it.

    Raises:
        MalformedMessageError: it does not belong on this stream, or has tokens that are not in the model's vocabulary.
    """
    if not isinstance(message, ScoredGroup):
        return
    task = message.group.task
    if (task.purpose == "train") != stream.endswith(":scored"):
        raise MalformedMessageError(f"group {task.group_id} for {task.purpose} does not belong on {stream}.")
    if task.purpose == "train" and task.group_id != f"train-{task.sequence}":
        raise MalformedMessageError(f"group {task.group_id} does not match its sequence number {task.sequence}.")
    message.group.check_vocabulary(vocabulary_size)


async def _event() -> asyncio.Event:
    return asyncio.Event()


async def _connect(url: str) -> Redis:
    return connect(url)


async def _reply(reply: Any) -> Any:
    """Await a reply that redis-py's types declare as a value or an awaitable."""
    return await reply

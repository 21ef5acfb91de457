"""The verifier's loops: move groups from `completions` to `scored` (train) or `evaluated` (evaluation).

Any number of verifiers serve all runs together. A group belongs to the verifier that took it until the scored group is
published, which also acknowledges it atomically. If the verifier dies, another takes the group over after
`IDLE_SECONDS`. A group whose verifiers died more than once (a suspect) is judged alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

from redis.exceptions import RedisError

from services.contracts import codec, streams
from services.contracts.events import Note
from services.contracts.messages import CompletedGroup, ScoredGroup
from services.runtime.connection import as_text, until_served
from services.runtime.logs import get_logger, log_fields
from services.runtime.metrics import TOKENS
from services.runtime.presence import Presence
from services.runtime.process import Service, end_if_cancelled
from services.runtime.queue.queue import Delivery, Held, Queue, Suspect
from services.runtime.settings import load
from services.runtime.traces import record
from services.verifier import metrics
from services.verifier.gate import one_second_try
from services.verifier.judge import Judge, open_judge
from services.verifier.settings import VerifierSettings
from services.verifier.workers.pool import WorkerPool

log = get_logger(__name__)
Group = Delivery[CompletedGroup]

IDLE_SECONDS: Final = 30.0
"""A group that its verifier has not touched for this long is taken over."""
TOUCH_SECONDS: Final = 8.0
RECLAIM_SECONDS: Final = 5.0
TELL_SECONDS: Final = 60.0
RECEIVE_SECONDS: Final = 0.5
"""Longest wait for a message, which also bounds the delay before another run is noticed."""


async def loops(service: Service) -> None:
    """Open the workers and every reward, then judge until cancelled."""
    settings = load(VerifierSettings)
    pool = WorkerPool(
        num_workers=settings.workers,
        cpu_seconds=settings.task_cpu_seconds,
        wall_seconds=settings.task_wall_seconds,
        memory_bytes=settings.worker_memory_mb << 20,
    )
    async with aclosing(pool), open_judge(pool) as judge:
        service.presence.details = judge.details
        service.presence.state = "ready"
        queue = Queue(service.redis, streams.GROUP_VERIFIER, service.presence.instance)
        await Verifier(queue, service.presence, judge, max_groups=settings.max_groups).run()


class Verifier:
    """The groups that a verifier holds, and the loops that take, touch, judge and forward them.

    It holds at most `max_groups`; the rest stay on the stream for other verifiers. Each group has its own task, so a
    slow one does not delay others while there is room.
    """

    def __init__(
        self, queue: Queue, presence: Presence, judge: Judge, *, max_groups: int, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self.queue = queue
        self.presence = presence
        self.judge = judge
        self.max_groups = max_groups
        self.idle_seconds = idle_seconds
        self._runs: list[str] = []
        self._turn = 0
        self._in_hand: dict[tuple[str, str], Group] = {}
        self._greeted: set[str] = set()
        self._suspect: Suspect | None = None
        """The suspect that waits to be judged alone."""
        self._taking = asyncio.Lock()
        """Serializes taking groups, so that none is judged together with a suspect."""
        self._room = asyncio.Event()
        self._told: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Run all loops until cancelled, then hand back the held groups, so that they are taken over immediately."""
        left: list[Held] = []
        has_fault = False
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._repeat(lambda: self._take(tasks), pause_seconds=0.0))
                tasks.create_task(self._repeat(lambda: self._take_over(tasks), pause_seconds=RECLAIM_SECONDS))
                tasks.create_task(self._repeat(self._keep, pause_seconds=TOUCH_SECONDS))
                try:
                    await asyncio.get_running_loop().create_future()  # until cancelled
                finally:
                    left = self._held()
        except Exception:
            has_fault = True
            raise
        finally:
            try:
                await self.queue.hand_back(left, after_fault=has_fault)
            except RedisError as error:
                log.warning("groups not handed back, left to time out", error=str(error))

    async def _repeat(self, step: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
        """Repeat `step`. A failing queue is logged and retried, since the held groups are still ours."""
        while True:
            try:
                await step()
                end_if_cancelled()
                await asyncio.sleep(pause_seconds)
            except RedisError as error:
                log.warning("queue server unreachable", error=str(error))
                self.presence.waits_for("the queue server")
                await asyncio.sleep(1.0)

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        """Consumes `completions` of all runs. Waits for room (freed by a judged group), a run, or a group."""
        while self._in_hand and not self._num_free():
            self.presence.waits_for(self.judge.waiting_for() or "room: all held groups are still being judged")
            self._room.clear()
            await self._room.wait()
        async with self._taking:
            if self._suspect is None:
                await self._take_new(tasks)
            elif not self._in_hand:
                suspect, self._suspect = self._suspect, None
                opened = await self.queue.open(suspect, CompletedGroup)
                self._start([] if opened is None else [opened], tasks)

    async def _take_new(self, tasks: asyncio.TaskGroup) -> None:
        named = (as_text(run) for run in await self.queue.redis.smembers(streams.RUNS))
        self._runs = sorted(run for run in named if streams.is_run_id(run))
        self._greeted &= set(self._runs)
        for run in self._runs:
            if run not in self._greeted:  # resume what an earlier process of this name did not finish
                stream = streams.completions(run)
                self._start(await self.queue.resume(stream, CompletedGroup, self._ids(stream)), tasks)
                self._greeted.add(run)
        idle = "completed groups" if self._runs else "a run"
        self.presence.waits_for(self.judge.waiting_for() if self._in_hand else idle)
        if self._runs:
            self._start(await self._receive(), tasks)
        else:
            await asyncio.sleep(RECEIVE_SECONDS)

    async def _receive(self) -> list[Group]:
        """Groups that no verifier has taken, at most as many as there is room for. More runs than that take turns."""
        free = max(1, self.max_groups - len(self._in_hand))
        self._turn = (self._turn + 1) % len(self._runs)
        chosen = (self._runs[self._turn :] + self._runs[: self._turn])[:free]
        return await self.queue.receive(
            [streams.completions(run) for run in chosen],
            CompletedGroup,
            count=max(1, free // len(chosen)),
            block_seconds=RECEIVE_SECONDS,
        )

    async def _take_over(self, tasks: asyncio.TaskGroup) -> None:
        """Take over groups that other verifiers have not touched for too long, as far as there is room."""
        async with self._taking:
            for run in list(self._runs):
                if room := self._num_free():
                    stream = streams.completions(run)
                    found = await self.queue.take_over(
                        stream, CompletedGroup, idle_seconds=self.idle_seconds, count=room, in_hand=self._ids(stream)
                    )
                    self._suspect = found.suspect
                    self._start(found.deliveries, tasks)

    async def _keep(self) -> None:
        """Touch the held groups, so that no other verifier takes them over."""
        async with self._taking:  # a late touch would undo the opening of a suspect
            await self.queue.touch(self._held())

    def _held(self) -> list[Held]:
        return [*self._in_hand.values(), *([] if self._suspect is None else [self._suspect])]

    def _ids(self, stream: str) -> set[str]:
        """Message ids of the held groups from this stream."""
        return {message_id for name, message_id in self._in_hand if name == stream}

    def _num_free(self) -> int:
        """Number of groups that may be taken; none alongside a suspect."""
        if self._suspect is not None or any(delivery.is_suspect for delivery in self._in_hand.values()):
            return 0
        return max(0, self.max_groups - len(self._in_hand))

    def _start(self, deliveries: Sequence[Group], tasks: asyncio.TaskGroup) -> None:
        for delivery in deliveries:
            key = (delivery.stream, delivery.message_id)
            if key not in self._in_hand:
                self._in_hand[key] = delivery
                self.presence.waits_for("")
                tasks.create_task(self._handle(delivery))

    async def _handle(self, delivery: Group) -> None:
        """Judge one group and forward it. A group that cannot be processed becomes a dead letter."""
        task = delivery.message.task
        with log_fields(run_id=task.run_id, group_id=task.group_id):
            await self._judge_and_forward(delivery)

    async def _judge_and_forward(self, delivery: Group) -> None:
        task, began = delivery.message.task, time.time()
        try:
            scored = await self._score(delivery.message)
            await until_served(lambda: self._forward(delivery, scored))
            correct = sum(verdict.status == "ok" and verdict.correct for verdict in scored.verdicts)
            record("verify", task, began, time.time(), kind=task.question.kind, num_correct=correct)
            await until_served(lambda: self._tell_faults(scored))
        except Exception as error:  # one group must not stop the others
            log.error("group failed", group_id=delivery.message.task.group_id, exc_info=error)
            reason = f"The verifier failed on this group: {error!r}"
            payload = codec.encode(delivery.message)
            await until_served(lambda: self.queue.dead_letter(delivery.stream, delivery.message_id, payload, reason))
        finally:
            del self._in_hand[delivery.stream, delivery.message_id]
            self._room.set()

    async def _score(self, group: CompletedGroup) -> ScoredGroup:
        """Judge all rollouts concurrently; workers and sandbox bound how many actually run at once."""
        question, rewards = group.task.question, group.task.rewards or ()
        with one_second_try():
            verdicts = await asyncio.gather(
                *(self.judge.verdict(question, rollout, rewards) for rollout in group.rollouts)
            )
        return ScoredGroup(group=group, verdicts=verdicts, verifier=self.presence.instance)

    async def _forward(self, delivery: Group, scored: ScoredGroup) -> None:
        """Publish the group on `scored` or `evaluated`, and acknowledge it on `completions` atomically."""
        task = scored.group.task
        target, outcome = streams.scored(task.run_id), "scored"
        if task.purpose == "evaluation":
            target, outcome = streams.evaluated(task.run_id), "evaluated"
        if not await self.queue.forward(delivery, target, scored):
            outcome = "taken_over"
        num_tokens = sum(len(rollout.token_ids) for rollout in scored.group.rollouts)
        self.presence.tokens_total += num_tokens
        TOKENS.labels("verifier", task.run_id).inc(num_tokens)
        metrics.GROUPS.labels(task.run_id, outcome).inc()

    async def _tell_faults(self, scored: ScoredGroup) -> None:
        """Publish a note on `events` if rollouts could not be judged, so that users see the remedy.

        At most one per run and kind in `TELL_SECONDS`.
        """
        task = scored.group.task
        pairs = zip(scored.group.rollouts, scored.verdicts, strict=True)
        faults = [verdict.fault for rollout, verdict in pairs if rollout.status == "ok" and verdict.status != "ok"]
        if not faults:
            return
        now = time.monotonic()
        self._told = {key: at for key, at in self._told.items() if now - at < TELL_SECONDS}
        key = (task.run_id, task.question.kind)  # without the text, which names the question
        self.presence.details = {**self.presence.details, "last_fault": faults[0]}
        if key in self._told:
            return
        self._told[key] = now
        text = f"{len(faults)} of {len(scored.verdicts)} rollouts of {task.group_id} could not be judged: {faults[0]}"
        log.warning("rollouts not judged", run_id=task.run_id, group_id=task.group_id, fault=faults[0])
        note = Note(run_id=task.run_id, at=time.time(), level="warning", source=self.presence.instance, text=text)
        await self.queue.publish(streams.EVENTS, note)

"""The sampling loop of one run.

Consumes `prompts` and produces `completions`. Waits for prompts, for weights that are recent enough for a held task,
and for the engine. Takes as many groups as fill the engine plus one, so that the engine is never idle between groups.
While the engine is healthy, the worker touches every message that it holds, so that no other server takes it; otherwise
it stops, and another server may take over. A server that leaves hands back what it holds. A group is acknowledged
atomically with publishing its result. A prompt whose earlier servers died more than once (a suspect) is sampled alone:
the worker takes nothing else until groups in progress have finished, and first hands back those that wait for newer
weights.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from redis.exceptions import RedisError

from services.contracts import codec, streams
from services.contracts.arrays import TokenIds
from services.contracts.messages import CompletedGroup, PromptTask, Rollout
from services.contracts.turns import WAITS_FOR_TURN
from services.rollout import metrics
from services.rollout.allowance import Allowance
from services.rollout.sampling.sampling import GroupSampler, fault
from services.rollout.vllm.server import EngineServer
from services.runtime.connection import until_served
from services.runtime.logs import get_logger
from services.runtime.metrics import TOKENS
from services.runtime.presence import Presence
from services.runtime.process import end, end_if_cancelled
from services.runtime.queue.queue import Delivery, Held, Queue, Suspect
from services.runtime.traces import record

log = get_logger(__name__)
IDLE_SECONDS = 30.0
"""A message that its holder has not touched for this long is taken over."""
TOUCH_SECONDS = 5.0
"""Interval of touching, and of checking for messages that other servers left or handed back."""
MAX_TAKEN = 2
"""Messages taken at once, so that waiting servers share what is fed instead of the first taking everything."""
TICK_SECONDS = 0.05
WAITS_FOR_ALLOWANCE = "processor time next to a training run"


class RolloutWorker:
    """Samples the groups of one run until cancelled."""

    def __init__(
        self,
        run_id: str,
        queue: Queue,
        server: EngineServer,
        sampler: GroupSampler,
        presence: Presence,
        max_num_seqs: int,
        allowance: Allowance | None = None,
    ) -> None:
        """`allowance` limits the engine's work; None for a training run, which it is kept for."""
        self._run_id = run_id
        self._queue = queue
        self._server = server
        self._sampler = sampler
        self._presence = presence
        self._max_num_seqs = max_num_seqs
        self._allowance = allowance or Allowance()
        self._prompts = streams.prompts(run_id)
        self._held: dict[str, Delivery[PromptTask]] = {}
        """Tasks that have not started, for example because they need newer weights, by message id."""
        self._active: dict[str, tuple[Delivery[PromptTask], asyncio.Task[None]]] = {}
        self._keeping = asyncio.Lock()
        """Serializes touching and handing back: a late touch would undo a hand-back."""
        self._suspects: dict[str, tuple[Suspect, int]] = {}
        """Suspects that wait to be sampled alone, by message id, with the weight version each needs (0 if unknown)."""

    async def run(self) -> None:
        """Sample until cancelled, then hand back held messages, so that another server, or this one after a restart,
        can take them immediately."""
        upkeep = asyncio.create_task(self._upkeep())
        has_own = has_fault = False
        try:
            while not upkeep.done():
                try:
                    if not has_own:
                        self._accept(await self._queue.resume(self._prompts, PromptTask))
                        has_own = True
                    await self._turn()
                except RedisError as error:
                    log.warning("queue server unreachable", error=str(error))
                    await asyncio.sleep(1.0)
            upkeep.result()  # raise its error, since nothing is touched without it
        except Exception:
            has_fault = True
            raise
        finally:
            in_hand = self._in_hand()
            await end([upkeep, *(task for _, task in self._active.values())])
            self._presence.waits_for("")
            await self._hand_back([*in_hand, *self._waiting_suspects()], has_fault)

    def _in_hand(self) -> list[Delivery[PromptTask]]:
        return [*self._held.values(), *(delivery for delivery, _ in self._active.values())]

    def _waiting_suspects(self) -> list[Suspect]:
        return [suspect for suspect, _ in self._suspects.values()]

    def _next_suspect(self) -> Suspect | None:
        """A suspect that could be sampled now if nothing else were held."""
        version = self._server.version or 0
        return next((suspect for suspect, needed in self._suspects.values() if needed <= version), None)

    async def _hand_back(self, held: Sequence[Held], has_fault: bool) -> None:
        if not held:
            return
        try:
            await self._queue.hand_back(held, after_fault=has_fault)
            log.info("groups handed back", num_groups=len(held))
        except RedisError as error:
            log.warning("groups not handed back, left to time out", error=str(error))

    async def _turn(self) -> None:
        """Start what may start, then take more if there is room, or wait for the engine or for a group to end."""
        await self._open_suspect()
        is_allowed = self._allowance.is_open
        if is_allowed:
            await self._start_held()
        room = self._room() if is_allowed else 0
        if room > 0 and self._server.phase == "serving":
            found = await self._queue.receive(
                [self._prompts],
                PromptTask,
                count=min(room, MAX_TAKEN),
                block_seconds=TICK_SECONDS if self._held else 0.5,
            )
            self._accept(found)
        elif self._server.phase != "serving":
            # Waiting for a group to end would leave the engine half empty after the update.
            await self._server.until_serving(0.5)
        elif self._active:
            await asyncio.wait(
                [task for _, task in self._active.values()],
                timeout=TICK_SECONDS if self._held else 0.5,
                return_when=asyncio.FIRST_COMPLETED,
            )
        else:
            await asyncio.sleep(TICK_SECONDS)
        self._say_what_is_missing()

    def _accept(self, deliveries: Sequence[Delivery[PromptTask]]) -> None:
        for delivery in deliveries:
            if delivery.message_id not in self._active:
                self._held[delivery.message_id] = delivery

    @property
    def _must_clear(self) -> bool:
        """Whether a suspect is being sampled, or could be if nothing else were held."""
        return self._next_suspect() is not None or any(delivery.is_suspect for delivery in self._in_hand())

    async def _open_suspect(self) -> None:
        """Open a waiting suspect once nothing else is held, so that no other group is blamed if the engine dies."""
        suspect = self._next_suspect()
        if suspect is None or self._active or self._server.phase != "serving":
            return
        async with self._keeping:
            await self._queue.hand_back(list(self._held.values()))
            self._held.clear()
            del self._suspects[suspect.message_id]
            delivery = await self._queue.open(suspect, PromptTask)
            if delivery is None:
                return
            needed = delivery.message.min_weight_version
            if needed > (self._server.version or 0):
                self._suspects[delivery.message_id] = await self._queue.close(delivery), needed
            else:
                log.warning("sampled alone", group_id=delivery.message.group_id, times_given_out=delivery.times)
                self._accept([delivery])

    async def _start_held(self) -> None:
        if self._server.phase != "serving" or self._server.version is None:
            return
        num_sequences = self._num_sequences()
        for message_id, delivery in list(self._held.items()):
            task = delivery.message
            if task.min_weight_version > self._server.version or num_sequences >= self._max_num_seqs * 2:
                continue
            if self._must_clear and not delivery.is_suspect:
                continue
            num_sequences += task.sampling.num_samples
            del self._held[message_id]
            self._active[message_id] = (delivery, asyncio.create_task(self._sample(delivery)))

    def _room(self) -> int:
        """Number of groups that may be taken: enough to fill the engine plus one, but none alongside a suspect."""
        if self._must_clear:
            return 0
        in_hand = [delivery.message for delivery in self._held.values()]
        num_sequences = self._num_sequences() + sum(task.sampling.num_samples for task in in_hand)
        size = max([task.sampling.num_samples for task in in_hand] + [self._group_size()])
        return (self._max_num_seqs - num_sequences) // size + 1

    def _group_size(self) -> int:
        sizes = [delivery.message.sampling.num_samples for delivery, _ in self._active.values()]
        return max(sizes, default=8)

    def _num_sequences(self) -> int:
        return sum(delivery.message.sampling.num_samples for delivery, _ in self._active.values())

    async def _sample(self, delivery: Delivery[PromptTask]) -> None:
        """Process one group from task to published result. Our own bug makes it a dead letter, or it would return."""
        try:
            with self._allowance.working():
                await self._sample_and_publish(delivery)
        except Exception as error:  # one group must not stop the others
            log.exception("group failed", group_id=delivery.message.group_id)
            payload, reason = codec.encode(delivery.message), f"The rollout server failed on this prompt: {error!r}"
            await until_served(lambda: self._queue.dead_letter(delivery.stream, delivery.message_id, payload, reason))
        finally:
            self._active.pop(delivery.message_id, None)

    async def _sample_and_publish(self, delivery: Delivery[PromptTask]) -> None:
        task = delivery.message
        began, started = time.time(), time.monotonic()
        prompt, rollouts = await self._sample_or_fault(task)
        seconds = time.monotonic() - started
        group = CompletedGroup(
            task=task,
            prompt_token_ids=TokenIds(prompt),
            rollouts=rollouts,
            server=self._presence.instance,
            seconds=seconds,
        )
        target = streams.completions(self._run_id)
        # Retried until the queue server accepts it, because sampling again would cost more than waiting.
        if not await until_served(lambda: self._queue.forward(delivery, target, group)):
            log.info("group already published by another server", group_id=task.group_id)
            return
        num_tokens = sum(len(rollout.token_ids) for rollout in rollouts)
        num_faults = sum(rollout.status != "ok" for rollout in rollouts)
        version = self._server.version
        record("rollout", task, began, time.time(), num_tokens=num_tokens, num_faults=num_faults, version=version)
        self._presence.tokens_total += num_tokens
        TOKENS.labels("rollout", self._run_id).inc(num_tokens)
        metrics.GROUPS.labels(task.purpose).inc()
        metrics.FAULTS.inc(num_faults)
        metrics.GENERATION_SECONDS.observe(seconds)

    async def _sample_or_fault(self, task: PromptTask) -> tuple[list[int], list[Rollout]]:
        try:
            return await self._sampler.sample(task)
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a tokenizer's panic is no `Exception`, and the group would return indefinitely
            log.exception("sampling failed", group_id=task.group_id)
            return [], [fault(f"{type(error).__name__}: {error}")] * task.sampling.num_samples

    async def _upkeep(self) -> None:
        """Touch what is held, and take over what other servers left."""
        while True:
            end_if_cancelled()  # otherwise it would touch what the worker has handed back
            await asyncio.sleep(TOUCH_SECONDS)
            if self._server.phase in ("failed", "absent"):
                continue
            try:
                async with self._keeping:
                    await self._queue.touch([*self._in_hand(), *self._waiting_suspects()])
                    if (room := self._room()) > 0:
                        await self._take_over(min(room, 16))
            except RedisError as error:
                log.warning("queue server unreachable", error=str(error))

    async def _take_over(self, count: int) -> None:
        in_hand = {delivery.message_id for delivery in self._in_hand()} | set(self._suspects)
        found = await self._queue.take_over(
            self._prompts, PromptTask, idle_seconds=IDLE_SECONDS, count=count, in_hand=in_hand
        )
        self._accept(found.deliveries)
        if found.suspect is not None:
            self._suspects[found.suspect.message_id] = found.suspect, 0

    def _say_what_is_missing(self) -> None:
        if self._server.phase == "asleep":
            self._presence.waits_for(WAITS_FOR_TURN)
        elif self._server.phase != "serving":
            self._presence.waits_for(f"weights (update is {self._server.phase})")
        elif self._active:
            self._presence.waits_for("")
        elif not self._allowance.is_open:
            self._presence.waits_for(WAITS_FOR_ALLOWANCE)
        elif self._held:
            needed = min(delivery.message.min_weight_version for delivery in self._held.values())
            self._presence.waits_for(f"weights version {needed}")
        else:
            self._presence.waits_for("prompts")

"""A timed rollout engine: continuous batching with `max_num_seqs` slots, one token of every running sequence a step.

Its clock counts decoding steps; how long a step takes depends on how many sequences run, so the clock is brought up to
date whenever that changes. It shows the two attributes of `EngineServer` that the worker reads (phase, version) and the
one method of `GroupSampler` that it calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from collections import deque

from benchmarks.simulation.scenario import Scenario
from services.contracts.arrays import LogProbs, TokenIds
from services.contracts.messages import PromptTask, Rollout, VersionSpan

VOCABULARY = 150_000
TEXT = "the quick brown fox jumps over a lazy dog, "


class TimedEngine:
    """One server's engine."""

    def __init__(self, scenario: Scenario, version: int, busy: list[float]) -> None:
        """`busy[0]` collects the tokens decoded by all engines."""
        self.phase = "serving"
        self.version: int | None = version
        self._scenario = scenario
        self._busy = busy
        self._loop = asyncio.get_running_loop()
        self._steps = 0.0
        self._at = self._loop.time()
        self._running: list[tuple[float, int, float, asyncio.Future[list[VersionSpan]]]] = []
        """Heap of (last step, number, first step, whom to tell)."""
        self._waiting: deque[tuple[int, asyncio.Future[list[VersionSpan]]]] = deque()
        self._number = 0
        self._versions: list[tuple[float, int]] = [(0.0, version)]
        self._timer: asyncio.TimerHandle | None = None
        self._serving = asyncio.Event()
        self._serving.set()

    async def decode(self, num_tokens: int) -> list[VersionSpan]:
        """Sample `num_tokens`; returns which weights sampled them."""
        future: asyncio.Future[list[VersionSpan]] = self._loop.create_future()
        self._waiting.append((num_tokens, future))
        self._turn()
        return await future

    async def until_serving(self, seconds: float) -> None:
        """As `EngineServer`'s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._serving.wait()

    def pause(self) -> None:
        """Stop decoding; sequences keep their place."""
        self._advance()
        self.phase = "paused"
        self._serving.clear()
        self._turn()

    def resume(self, version: int) -> None:
        """Resume with other weights."""
        self._advance()
        self.phase, self.version = "serving", version
        self._serving.set()
        self._versions.append((self._steps, version))
        self._turn()

    def end(self) -> None:
        """The process is gone, and all that it was sampling."""
        self.phase = "absent"
        if self._timer is not None:
            self._timer.cancel()
        self._running.clear()
        self._waiting.clear()

    def _step_seconds(self) -> float:
        return self._scenario.decode_base_seconds + self._scenario.decode_per_sequence_seconds * len(self._running)

    def _advance(self) -> None:
        now = self._loop.time()
        if self.phase == "serving" and self._running:
            steps = (now - self._at) / self._step_seconds()
            self._steps += steps
            self._busy[0] += steps * len(self._running)
        self._at = now

    def _turn(self) -> None:
        """Bring the clock up to date, end what is done, start what may start, and set the timer for the next end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._advance()
        while self._running and self._running[0][0] <= self._steps + 1e-6:
            last, _, first, future = heapq.heappop(self._running)
            if not future.done():
                future.set_result(self._spans(first, last))
        if self.phase != "serving":
            return
        while self._waiting and len(self._running) < self._scenario.max_num_seqs:
            num_tokens, future = self._waiting.popleft()
            self._number += 1
            heapq.heappush(self._running, (self._steps + num_tokens, self._number, self._steps, future))
        if self._running:
            seconds = max(0.0, self._running[0][0] - self._steps) * self._step_seconds()
            self._timer = self._loop.call_later(seconds + 1e-6, self._turn)

    def _spans(self, first: float, last: float) -> list[VersionSpan]:
        num_tokens = round(last - first)
        spans: list[VersionSpan] = []
        for index, (_, version) in enumerate(self._versions):
            ends = self._versions[index + 1][0] if index + 1 < len(self._versions) else last
            end = round(min(float(num_tokens), ends - first))
            start = spans[-1].end if spans else 0
            if end > start:
                spans.append(VersionSpan(version, start, end))
        return spans


def response_lengths(scenario: Scenario, group_id: str) -> list[int]:
    """Tokens of each response of a group. Drawn by its name, so that a group sampled twice is the same."""
    dice = random.Random(f"{scenario.seed} {group_id}")
    drawn = [scenario.median_tokens * dice.lognormvariate(0.0, scenario.sigma) for _ in range(scenario.group_size)]
    return [max(1, min(scenario.max_tokens, int(length))) for length in drawn]


class TimedSampler:
    """Groups whose sampling takes as long as their responses need in the engine."""

    def __init__(self, scenario: Scenario, engine: TimedEngine) -> None:
        self._scenario = scenario
        self._engine = engine

    async def sample(self, task: PromptTask) -> tuple[list[int], list[Rollout]]:
        lengths = response_lengths(self._scenario, task.group_id)
        dice = random.Random(task.group_id)
        spans = await asyncio.gather(*(self._engine.decode(length) for length in lengths))
        rollouts = [self._rollout(dice, length, found) for length, found in zip(lengths, spans, strict=True)]
        return [dice.randrange(VOCABULARY) for _ in range(64)], rollouts

    def _rollout(self, dice: random.Random, length: int, spans: list[VersionSpan]) -> Rollout:
        carried = max(len(spans), round(length * self._scenario.payload_scale))
        start = dice.randrange(len(_TOKENS) - self._scenario.max_tokens)
        return Rollout(
            status="ok",
            text=(TEXT * (carried * 4 // len(TEXT) + 1))[: carried * 4],
            token_ids=TokenIds(_TOKENS[start : start + carried]),
            logprobs=LogProbs(_LOGPROBS[start : start + carried]),
            weight_versions=_scaled(spans, length, carried),
            finish_reason="length" if length == self._scenario.max_tokens else "stop",
        )


def _scaled(spans: list[VersionSpan], length: int, carried: int) -> list[VersionSpan]:
    """The spans of `length` tokens on `carried` tokens, each at least one token long."""
    result: list[VersionSpan] = []
    for index, span in enumerate(spans):
        left = len(spans) - index - 1
        start = result[-1].end if result else 0
        end = carried if left == 0 else min(carried - left, max(start + 1, round(span.end * carried / length)))
        result.append(VersionSpan(span.version, start, end))
    return result


_dice = random.Random(0)
_TOKENS = [_dice.randrange(VOCABULARY) for _ in range(40_000)]
_LOGPROBS = [-_dice.expovariate(3.0) for _ in range(40_000)]

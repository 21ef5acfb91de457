"""Judges rollouts: one rollout in, one verdict out, whatever happens in between.

A reward runs in place (if it is fast and linear), in a supervised worker process (parsers that may hang or crash, and
rewards of installed packages), or waits for something that it has opened (sandbox, HTTP endpoint). Our own fault, or
one of the question, becomes a verdict with status `infrastructure_fault` and the reason, never reward 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from services.contracts.errors import InfrastructureError, QuestionError, TurnoutError, UnavailableError
from services.contracts.judgement import Judgement
from services.contracts.messages import Question, RewardPart, Rollout, Verdict
from services.contracts.rewards import LENGTH
from services.runtime.logs import get_logger
from services.verifier import metrics, parts
from services.verifier.rewards import registry
from services.verifier.rewards.format import of_format
from services.verifier.rewards.registry import AsynchronousReward, Opened
from services.verifier.rewards.replies import no_answer_after_thinking

log = get_logger(__name__)


class Judge:
    """Every kind that this verifier can judge."""

    def __init__(self, pool: AsynchronousReward, opened: Mapping[str, Opened]) -> None:
        """`pool` judges supervised kinds and those of installed packages; `opened` are rewards that need opening."""
        self._in_place: dict[str, registry.RewardFunction] = {}
        self._waited_for = {kind: one.reward for kind, one in opened.items()}
        self._opened = opened
        self._with_threshold = {kind for kind, one in opened.items() if one.has_threshold}
        for kind, reward in registry.built_in().items():
            if reward.supervised:
                self._waited_for[kind] = pool
            elif reward.function is not None:
                self._in_place[kind] = reward.function
        for kind in registry.own_kinds():
            self._waited_for[kind] = pool
        self.details = {"kinds": ", ".join(self.kinds)}
        """Shown with the verifier's heartbeat."""
        for one in opened.values():
            self.details |= one.details

    def waiting_for(self) -> str:
        """What a reward waits for while it cannot judge; empty if none does."""
        return next((text for one in self._opened.values() if (text := one.waiting_for())), "")

    @property
    def kinds(self) -> list[str]:
        return sorted({*self._in_place, *self._waited_for})

    async def verdict(self, question: Question, rollout: Rollout, rewards: Sequence[RewardPart] = ()) -> Verdict:
        """The verdict on one rollout, by the parts `rewards` or by the question's kind alone. Raises only if
        cancelled."""
        if rollout.status != "ok":
            return Verdict(status="infrastructure_fault", fault=f"The rollout failed: {rollout.fault}")
        if not rewards:
            return await self._verdict(question, rollout)
        started = time.perf_counter()
        verdicts = await asyncio.gather(*(self._part(part, question, rollout) for part in rewards))
        return parts.combined(rewards, verdicts, time.perf_counter() - started)

    async def _part(self, part: RewardPart, question: Question, rollout: Rollout) -> Verdict:
        if part.kind == LENGTH:
            return parts.length_verdict(part, rollout)
        return await self._verdict(parts.question_of(part, question), rollout)

    async def _verdict(self, question: Question, rollout: Rollout) -> Verdict:
        """The verdict of one kind."""
        started = time.perf_counter()
        kind = question.kind if question.kind in self.kinds else "unknown"
        try:
            judgement = registry.checked(await self._judge(question, rollout))
        except Exception as error:  # any fault must become a recorded status
            if not isinstance(error, TurnoutError):
                log.error("reward failed", kind=question.kind, question=question.id, exc_info=error)
            fault = str(error) if isinstance(error, TurnoutError) else f"Reward {kind} failed: {error!r}"
            verdict = Verdict(status="infrastructure_fault", fault=fault[:2000], seconds=time.perf_counter() - started)
        else:
            verdict = Verdict(
                status="ok",
                reward=judgement.reward,
                correct=judgement.correct,
                parsed_answer=judgement.parsed_answer,
                format_ok=judgement.format_ok,
                feedback=judgement.feedback,
                seconds=time.perf_counter() - started,
                solved=judgement.correct if kind in self._with_threshold else msgspec.UNSET,
            )
        metrics.SECONDS.labels(kind).observe(verdict.seconds)
        metrics.VERDICTS.labels(kind, _outcome(verdict)).inc()
        return verdict

    async def _judge(self, question: Question, rollout: Rollout) -> Any:
        function, reward = self._in_place.get(question.kind), self._waited_for.get(question.kind)
        if function is None and reward is None:
            raise QuestionError(
                f"Question {question.id} has kind {question.kind!r}, which this verifier cannot judge.",
                remedy=f"Use one of {', '.join(self.kinds)}, or install a package that provides it "
                f"(entry point group {registry.ENTRY_POINTS}, see docs/rewards.md).",
            )
        text, truncated = rollout.answer, rollout.finish_reason == "length"
        if text is None:  # no reward may find an answer in thoughts
            return Judgement(reward=0.0, correct=False, feedback=no_answer_after_thinking(truncated))
        if parts.lacks_thinking(question, rollout):
            return of_format(["reasoning"])
        if function is not None:
            return function(question, text, truncated)
        assert reward is not None
        return await reward.judge(question, text, truncated)


@asynccontextmanager
async def open_judge(pool: AsynchronousReward) -> AsyncIterator[Judge]:
    """A judge with every built-in reward opened. Questions of an unavailable reward become faults with the reason.

    Raises:
        ConfigurationError: a reward's settings are wrong.
    """
    async with AsyncExitStack() as stack:
        opened = {}
        for kind, reward in registry.built_in().items():
            if reward.open is not None:
                try:
                    opened[kind] = await stack.enter_async_context(reward.open())
                except UnavailableError as error:
                    log.warning("reward unavailable", kind=kind, error=str(error))
                    opened[kind] = Opened(Unavailable(error), {kind: f"unavailable: {error}"})
        yield Judge(pool, opened)


class Unavailable:
    """Replaces a reward that could not be opened; its questions fail with the reason."""

    def __init__(self, error: UnavailableError) -> None:
        self._error = error

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement:
        raise InfrastructureError(self._error.message, remedy=self._error.remedy)


def _outcome(verdict: Verdict) -> str:
    if verdict.status != "ok":
        return verdict.status
    return "correct" if verdict.correct else "wrong"

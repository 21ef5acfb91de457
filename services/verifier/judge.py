"""One rollout in, one verdict out, whatever happens on the way.

Three ways to judge: in place (quick and linear rewards), in a supervised worker process (parsers that may hang or
crash, rewards of one's own), or by an asynchronous part (sandbox, HTTP endpoint). A fault of ours, or of the question,
becomes a verdict of status `infrastructure_fault` with the reason, never reward 0.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from services.contracts.errors import InfrastructureError, TurnoutError
from services.contracts.messages import Question, Rollout, Verdict
from services.runtime.logs import get_logger
from services.verifier import metrics
from services.verifier.rewards import registry
from services.verifier.rewards.registry import Judgement, QuestionError

log = get_logger(__name__)


class AsynchronousReward(Protocol):
    """Judges replies by waiting for something outside this process: sandbox, endpoint or worker pool.

    Raises:
        InfrastructureError: the something failed, after the part's own retries.
    """

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement: ...


class Judge:
    """Every kind that this verifier can judge."""

    def __init__(self, pool: AsynchronousReward, parts: Mapping[str, AsynchronousReward]) -> None:
        """`pool` judges supervised kinds and those of installed packages; `parts` are `code`, `http`."""
        self._in_place: dict[str, registry.RewardFunction] = {}
        self._parts = dict(parts)
        for kind, reward in registry.built_in().items():
            if reward.supervised:
                self._parts[kind] = pool
            else:
                self._in_place[kind] = reward.function
        for kind in registry.own_kinds():
            self._parts[kind] = pool

    @property
    def kinds(self) -> list[str]:
        return sorted({*self._in_place, *self._parts})

    async def verdict(self, question: Question, rollout: Rollout) -> Verdict:
        """The verdict on one rollout; never raises but for cancellation."""
        if rollout.status != "ok":
            return Verdict(status="infrastructure_fault", fault=f"The rollout failed: {rollout.fault}")
        started = time.perf_counter()
        kind = question.kind if question.kind in self._in_place or question.kind in self._parts else "unknown"
        try:
            judgement = registry.checked(await self._judge(question, rollout.text, rollout.finish_reason == "length"))
        except Exception as error:  # the border: any fault becomes a recorded status
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
            )
        metrics.SECONDS.labels(kind).observe(verdict.seconds)
        metrics.VERDICTS.labels(kind, _outcome(verdict)).inc()
        return verdict

    async def _judge(self, question: Question, text: str, truncated: bool) -> Any:
        function = self._in_place.get(question.kind)
        if function is not None:
            return function(question, text, truncated)
        part = self._parts.get(question.kind)
        if part is None:
            raise QuestionError(
                f"Question {question.id} has kind {question.kind!r}, which this verifier cannot judge.",
                remedy=f"Use one of {', '.join(self.kinds)}, or install a package that brings it "
                f"(entry point group {registry.ENTRY_POINTS}, docs/rewards.md).",
            )
        return await part.judge(question, text, truncated)


class Unavailable:
    """Stands in for a part that did not start: its kinds fail with the reason."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what = what
        self.remedy = remedy

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement:
        raise InfrastructureError(self.what, remedy=self.remedy)


def _outcome(verdict: Verdict) -> str:
    if verdict.status != "ok":
        return verdict.status
    return "correct" if verdict.correct else "wrong"

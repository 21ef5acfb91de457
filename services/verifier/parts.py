"""Combines the verdicts of a reward's parts (`rewards` of the run configuration, docs/rewards.md) into one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from services.contracts.messages import Question, RewardPart, Rollout, Verdict
from services.contracts.questions.forms import LengthSettings, format_settings
from services.contracts.rewards import ROW
from services.verifier.rewards.length import soft_overlong


def question_of(part: RewardPart, question: Question) -> Question:
    """The question as a part's reward reads it: with the kind and the settings of the part."""
    kind = question.kind if part.kind == ROW else part.kind
    tests = question.tests if part.tests is msgspec.UNSET else part.tests
    return msgspec.structs.replace(question, kind=kind, tests=tests)


def length_verdict(part: RewardPart, rollout: Rollout) -> Verdict:
    """The verdict of a part `length`, which has no feedback: a wrong answer is not wrong because of its length."""
    settings = msgspec.json.decode(part.tests or "", type=LengthSettings)
    return Verdict(status="ok", reward=soft_overlong(len(rollout.token_ids), settings))


def lacks_thinking(question: Question, rollout: Rollout) -> bool:
    """Whether a question of kind `format` requires reasoning that the rollout does not have."""
    if question.kind != "format" or "thinking" not in format_settings(question)[1].requires:
        return False
    return rollout.thinking is msgspec.UNSET or not rollout.thinking.num_tokens


def combined(parts: Sequence[RewardPart], verdicts: Sequence[Verdict], seconds: float) -> Verdict:
    """One verdict from those of all parts.

    The reward is their mean by weight. What is correct follows from the parts that decide: all of them must be, and in
    training all must reach their thresholds. A fault of any part is a fault of the whole: without it the reward would
    be another.
    """
    for part, verdict in zip(parts, verdicts, strict=True):
        if verdict.status != "ok":
            return msgspec.structs.replace(verdict, fault=f"{part.name}: {verdict.fault}", seconds=seconds)
    total = math.fsum(part.weight for part in parts)
    reward = math.fsum(part.weight * verdict.reward for part, verdict in zip(parts, verdicts, strict=True)) / total
    deciding = [
        (verdict, verdict.solves(part.threshold))
        for part, verdict in zip(parts, verdicts, strict=True)
        if part.threshold is not msgspec.UNSET
    ]
    first = deciding[0][0]
    return Verdict(
        status="ok",
        reward=min(1.0, reward),
        correct=all(verdict.correct for verdict, _ in deciding),
        parsed_answer=first.parsed_answer,
        format_ok=first.format_ok,
        feedback="\n".join(dict.fromkeys(verdict.feedback for verdict in verdicts if verdict.feedback)),
        seconds=seconds,
        solved=all(solved for _, solved in deciding),
        parts={part.name: verdict.reward for part, verdict in zip(parts, verdicts, strict=True)},
    )

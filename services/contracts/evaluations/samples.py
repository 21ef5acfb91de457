"""Which samples of an evaluated question are kept for people to read. Results come from all of them."""

from __future__ import annotations

from services.contracts.evaluations.results import usable
from services.contracts.messages import Question, Rollout, ScoredGroup, Verdict
from services.contracts.records import EvaluatedSample, KeptSamples

MOST = 4
"""Samples kept per question: correct and failed ones alternate, so that a question with both shows both."""
MOST_CHARACTERS = 8000
"""Of a longer text, beginning and end are kept: a reply ends with its answer."""


def kept_samples(group: ScoredGroup, version: int) -> KeptSamples:
    """The prompt, the expected answer and up to `MOST` samples of a question."""
    question = group.group.task.question
    ok = usable(group, version)
    found = [
        _sample(index, rollout, verdict, counts=counts)
        for index, (rollout, verdict, counts) in enumerate(zip(group.group.rollouts, group.verdicts, ok, strict=True))
    ]
    kept = sorted(_alternating(found)[:MOST], key=lambda item: item.index)
    return KeptSamples(prompt=_shortened(_prompt(question)), answer=_shortened(question.answer), samples=kept)


def _alternating(found: list[EvaluatedSample]) -> list[EvaluatedSample]:
    """Correct and failed ones in turn, then those that do not count."""
    correct = [item for item in found if item.counts and item.correct]
    failed = [item for item in found if item.counts and not item.correct]
    ranked = [*enumerate(correct), *enumerate(failed)]
    ranked.sort(key=lambda pair: pair[0])
    return [item for _, item in ranked] + [item for item in found if not item.counts]


def _sample(index: int, rollout: Rollout, verdict: Verdict, *, counts: bool) -> EvaluatedSample:
    fault = rollout.fault or verdict.fault
    return EvaluatedSample(
        index=index,
        text=_shortened(rollout.text),
        counts=counts,
        correct=verdict.correct,
        reward=verdict.reward,
        num_tokens=len(rollout.token_ids),
        truncated=rollout.finish_reason == "length",
        feedback=verdict.feedback[:MOST_CHARACTERS],
        fault=(fault or ("" if counts else "Sampled by other weights."))[:1000],
    )


def _prompt(question: Question) -> str:
    """The conversation as text. With only a prompt, that one."""
    turns = [("system", question.system)] if question.system else []
    turns += [(turn.role, turn.content) for turn in question.turns]
    if not turns:
        return question.prompt
    return "\n\n".join(f"[{role}]\n{content}" for role, content in [*turns, ("user", question.prompt)])


def _shortened(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"

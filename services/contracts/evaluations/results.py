"""An evaluation's results, from what each question came to; and the difference of two evaluations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from services.contracts.evaluations.statistics import accuracies, estimate, ks_of, pass_shares
from services.contracts.evaluations.tasks import usable_samples
from services.contracts.events import QuestionCount
from services.contracts.messages import ScoredGroup
from services.contracts.records import (
    ChangedQuestion,
    EvaluationDifference,
    IntervalEstimate,
    PassAtK,
    QuestionResult,
    SetDifference,
    SetResult,
)

SOLVED = 0.5
"""A question counts as solved if at least this share of its samples is correct."""


def question_result(group: ScoredGroup, name: str, version: int) -> QuestionResult:
    """What one question came to. Samples with an infrastructure fault are left out, as are those of other weights than
    `version`."""
    question = group.group.task.question
    counted = usable(group, version)
    rows = [
        (rollout, verdict)
        for rollout, verdict, ok in zip(group.group.rollouts, group.verdicts, counted, strict=True)
        if ok
    ]
    said = [rollout.fault for rollout in group.group.rollouts] + [verdict.fault for verdict in group.verdicts]
    faults = [fault for fault in said if fault]
    return QuestionResult(
        set=name,
        number=group.group.task.sequence,
        question_id=question.id,
        kind=question.kind,
        num_samples=len(rows),
        num_correct=sum(verdict.correct for _, verdict in rows),
        num_truncated=sum(rollout.finish_reason == "length" for rollout, _ in rows),
        num_faults=len(counted) - len(rows),
        response_tokens=sum(len(rollout.token_ids) for rollout, _ in rows),
        fault=faults[0][:1000] if faults else "",
    )


def usable(group: ScoredGroup, version: int) -> list[bool]:
    """Whether each sample counts: it has no infrastructure fault, and no token of other weights than `version`."""
    return [
        ok and rollout.oldest_version in (None, version)
        for ok, rollout in zip(usable_samples(group), group.group.rollouts, strict=True)
    ]


def run_questions(split: str, questions: Iterable[QuestionCount]) -> list[QuestionResult]:
    """What the questions of a run's own evaluation came to, as far as it reports that."""
    return [
        QuestionResult(
            set=split,
            number=number,
            question_id=item.question_id,
            kind=item.kind,
            num_samples=item.num_samples,
            num_correct=item.num_correct,
            num_truncated=0,
            num_faults=0,
            response_tokens=0,
            fault="",
        )
        for number, item in enumerate(questions)
    ]


def set_results(sets: Mapping[str, tuple[int, float]], questions: Iterable[QuestionResult]) -> list[SetResult]:
    """One result for each set that has a judged question, in the order of `sets`: name to samples and temperature."""
    by_set: dict[str, list[QuestionResult]] = defaultdict(list)
    for question in questions:
        by_set[question.set].append(question)
    return [_set_result(name, *sets[name], by_set[name]) for name in sets if by_set[name]]


def _set_result(name: str, num_samples: int, temperature: float, found: Sequence[QuestionResult]) -> SetResult:
    judged = [question for question in found if question.num_samples]
    counts = [(question.num_samples, question.num_correct) for question in judged]
    by_kind: dict[str, list[float]] = defaultdict(list)
    for question, accuracy in zip(judged, accuracies(counts), strict=True):
        by_kind[question.kind].append(accuracy)
    samples = sum(question.num_samples for question in judged)
    return SetResult(
        set=name,
        num_questions=len(judged),
        num_samples=num_samples,
        temperature=temperature,
        accuracy=IntervalEstimate(*estimate(accuracies(counts))),
        pass_at_k=[PassAtK(k=k, share=IntervalEstimate(*estimate(pass_shares(counts, k)))) for k in ks_of(num_samples)],
        accuracy_by_kind={kind: fmean(values) for kind, values in sorted(by_kind.items())},
        num_solved=sum(accuracy >= SOLVED for accuracy in accuracies(counts)),
        response_tokens_mean=sum(question.response_tokens for question in judged) / max(1, samples),
        truncated_ratio=sum(question.num_truncated for question in judged) / max(1, samples),
        num_faults=sum(question.num_faults for question in found),
    )


def difference(
    first: str, second: str, before: Iterable[QuestionResult], after: Iterable[QuestionResult]
) -> EvaluationDifference:
    """What changed from evaluation `first` to `second`, on the questions that both have."""
    old = {(item.set, item.question_id): item for item in before if item.num_samples}
    new = {(item.set, item.question_id): item for item in after if item.num_samples}
    shared = [key for key in old if key in new]
    names = dict.fromkeys(name for name, _ in shared)
    return EvaluationDifference(
        first=first,
        second=second,
        sets=[_set_difference(name, [(old[key], new[key]) for key in shared if key[0] == name]) for name in names],
        num_unpaired=len(old) + len(new) - 2 * len(shared),
    )


def _set_difference(name: str, pairs: Sequence[tuple[QuestionResult, QuestionResult]]) -> SetDifference:
    changed = [
        ChangedQuestion(
            question_id=old.question_id,
            kind=old.kind,
            before=old.num_correct / old.num_samples,
            after=new.num_correct / new.num_samples,
        )
        for old, new in pairs
    ]
    learned = [item for item in changed if item.before < SOLVED <= item.after]
    forgotten = [item for item in changed if item.after < SOLVED <= item.before]
    return SetDifference(
        set=name,
        num_questions=len(changed),
        before=fmean(item.before for item in changed),
        after=fmean(item.after for item in changed),
        difference=IntervalEstimate(*estimate([item.after - item.before for item in changed])),
        num_better=sum(item.after > item.before for item in changed),
        num_worse=sum(item.after < item.before for item in changed),
        learned=sorted(learned, key=lambda item: item.before - item.after),
        forgotten=sorted(forgotten, key=lambda item: item.after - item.before),
    )

"""The probe's numbers from rollouts. Its way through the real training program is in `test_ring`."""

from __future__ import annotations

from typing import Any

import pytest

from services.contracts.run_config import parse_run_config
from services.learner.program.probe import Sampled, Told, summarize, teacher_gap, teacher_information
from tests.services.learner.ring import run_values


def sampled(*correct: bool, **fields: Any) -> Sampled:
    values: dict[str, Any] = {
        "correct": list(correct),
        "texts": [f"response {index}" for index in range(len(correct))],
        "feedback": ["" if right else f"feedback {index}" for index, right in enumerate(correct)],
        "lengths": [10] * len(correct),
        "num_truncated": 0,
        "num_well_formed": len(correct),
    }
    return Sampled(**values | fields)


def test_the_teacher_gap_compares_the_same_questions_without_the_demonstration() -> None:
    base = {
        0: sampled(True, False, False, False, num_truncated=2),
        1: sampled(True, True, True, True, lengths=[1, 2, 3, 40]),
        2: sampled(False, False, False, False, num_well_formed=1),
        3: sampled(),  # every rollout had a fault
    }
    taught = {0: sampled(True, True, True, False), 1: sampled(True, True, False, True)}
    told = {index: teacher_information("solution", item, "") for index, item in base.items()}
    gap = teacher_gap("solution", {index: item for index, item in told.items() if item}, base, taught)
    found = summarize(base, [gap], "run-1", parse_run_config(run_values()))
    assert (found.num_questions, found.num_taught_questions) == (3, 2)
    assert found.accuracy == pytest.approx((0.25 + 1 + 0) / 3)
    assert (found.all_correct_ratio, found.mixed_ratio, found.all_wrong_ratio) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found.pass_at_k == pytest.approx(2 / 3)
    assert found.untaught_accuracy == pytest.approx((0 + 1) / 2), "not 0.25 and 1: the demonstration is left out"
    assert found.taught_accuracy == pytest.approx(0.75)
    assert found.truncated_ratio == pytest.approx(2 / 12)
    assert found.well_formed_ratio == pytest.approx(9 / 12)
    assert found.response_tokens_p95 == 40


def test_each_kind_of_information_comes_from_rollouts_that_have_it() -> None:
    item = sampled(False, False, True, True, feedback=["", "too short", "", ""], texts=["a", "b", "", "d"])
    assert teacher_information("solution", item, "") == Told("d", None, frozenset({3})), "the first that shows anything"
    assert teacher_information("feedback", item, "") == Told(None, "too short", frozenset({1}))
    assert teacher_information("solution_and_feedback", item, "") == Told("d", "too short", frozenset({1, 3}))
    assert teacher_information("reference", item, "the row's") == Told("the row's", None, frozenset())
    assert teacher_information("reference", item, "") is None
    assert teacher_information("solution_and_feedback", sampled(True, True), "") is None
    assert teacher_information("feedback", sampled(True, False, feedback=["", ""]), "") is None


def test_a_gap_leaves_out_the_rollouts_that_the_information_came_from() -> None:
    base = {0: sampled(False, False, True, True), 1: sampled(False)}
    told = {0: Told(None, "no", frozenset({0})), 1: Told(None, "no", frozenset({0}))}
    gap = teacher_gap("feedback", told, base, {0: sampled(True, True, False, True), 1: sampled(True)})
    assert gap.num_questions == 1, "the second question has nothing to compare with"
    assert (gap.untaught_accuracy, gap.taught_accuracy) == pytest.approx((2 / 3, 3 / 4))
    assert gap.points == pytest.approx(1 / 12)

"""The probe's numbers from rollouts. Its way through the real training program is in `test_ring`."""

from __future__ import annotations

from typing import Any

import pytest

from services.contracts.run_config import parse_run_config
from services.learner.program.probe import Sampled, summarize
from tests.services.learner.ring import run_values


def sampled(*correct: bool, **fields: Any) -> Sampled:
    values: dict[str, Any] = {
        "correct": list(correct),
        "texts": [f"response {index}" for index in range(len(correct))],
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
    found = summarize(base, taught, "run-1", parse_run_config(run_values()))
    assert (found.num_questions, found.num_taught_questions) == (3, 2)
    assert found.accuracy == pytest.approx((0.25 + 1 + 0) / 3)
    assert (found.all_correct_ratio, found.mixed_ratio, found.all_wrong_ratio) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found.pass_at_k == pytest.approx(2 / 3)
    assert found.untaught_accuracy == pytest.approx((0 + 1) / 2), "not 0.25 and 1: the demonstration is left out"
    assert found.taught_accuracy == pytest.approx(0.75)
    assert found.truncated_ratio == pytest.approx(2 / 12)
    assert found.well_formed_ratio == pytest.approx(9 / 12)
    assert found.response_tokens_p95 == 40

"""What a probe's numbers come to, and the advice that they give."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.contracts.events import Information, ProbeFinished, TeacherGap
from services.contracts.probe import advice, probe_config, report
from services.contracts.run_config import RunConfig, parse_run_config

GOOD = ProbeFinished(
    run_id="run-1",
    at=0.0,
    num_questions=32,
    num_samples=8,
    accuracy=0.4,
    pass_at_k=0.8,
    all_correct_ratio=0.1,
    mixed_ratio=0.7,
    all_wrong_ratio=0.2,
    well_formed_ratio=0.95,
    truncated_ratio=0.0,
    response_tokens_mean=100.0,
    response_tokens_p95=200,
    num_taught_questions=20,
    taught_accuracy=0.7,
    untaught_accuracy=0.4,
    gaps=[TeacherGap(information="solution", num_questions=20, taught_accuracy=0.7, untaught_accuracy=0.4)],
)


def with_gap(information: Information, points: float) -> ProbeFinished:
    other = TeacherGap(information=information, num_questions=9, taught_accuracy=0.1 + points, untaught_accuracy=0.1)
    assert GOOD.gaps is not msgspec.UNSET
    return msgspec.structs.replace(GOOD, gaps=[*GOOD.gaps, other])


def config(**sections: Any) -> RunConfig:
    values = {
        "name": "mine",
        "model": {"path": "m"},
        "data": {"train": "t.jsonl", "validation": "v.jsonl"},
        "training": {"steps": 1000},
        "rollout": {"max_response_tokens": 512},
    }
    return parse_run_config(values | sections)


def test_a_probe_samples_as_the_run_would_and_trains_few_steps_without_evaluations() -> None:
    probed = probe_config(config(), 50, 3)
    assert probed.probe is not None
    assert (probed.probe.num_questions, probed.probe.planned_steps, probed.training.steps) == (50, 1000, 3)
    assert not probed.evaluation.before_training
    assert not probed.evaluation.after_training
    assert probed.evaluation.every_steps is None
    assert probed.rollout == config().rollout
    assert probed.name == "probe of mine"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "the task can be learned"),
        ({"num_questions": 0}, "No question could be judged"),
        ({"num_faults": 60}, "60 rollouts could not be judged"),
        ({"well_formed_ratio": 0.3}, "Only 30% of the responses have the form"),
        ({"all_wrong_ratio": 0.9, "mixed_ratio": 0.1}, "90% of the questions have no correct rollout"),
        ({"all_correct_ratio": 0.9, "mixed_ratio": 0.1}, "90% of the questions are already solved"),
        ({"all_correct_ratio": 0.45, "mixed_ratio": 0.1, "all_wrong_ratio": 0.45}, "Only 10% of the questions"),
        ({"truncated_ratio": 0.4}, "40% of the responses are cut at 512 tokens"),
        ({"response_tokens_p95": 90}, "at most 90 tokens long"),
        ({}, "+30 points: self-distillation has something to teach"),
        ({"taught_accuracy": 0.4}, "compare with objective.name grpo"),
        ({"num_taught_questions": 0}, "no sibling's solution could be tried"),
    ],
)
def test_each_fault_of_a_task_has_its_advice(changes: dict[str, Any], words: str) -> None:
    text = " ".join(advice(config(), msgspec.structs.replace(GOOD, **changes)))
    assert words in text
    if changes.get("well_formed_ratio") or changes.get("all_wrong_ratio") == 0.9:
        assert "can be learned" not in text


def test_the_time_left_out_is_that_of_the_first_step() -> None:
    found = report(probe_config(config(), 32, 3), GOOD, [{"seconds": 60.0}, {"seconds": 9.0}, {"seconds": 11.0}])
    assert found.seconds_per_step == pytest.approx(10.0)
    assert found.hours == pytest.approx(1000 * 10 / 3600)
    assert found.teacher_gap == pytest.approx(0.3)
    early = report(probe_config(config(), 32, 3), GOOD, [])
    assert (early.seconds_per_step, early.hours) == (None, None)


@pytest.mark.parametrize(
    ("information", "told", "remedy"),
    [
        ("feedback", {"feedback": "fallback"}, "consider objective.feedback fallback"),
        ("solution_and_feedback", {"feedback": "with_solution"}, "consider objective.feedback with_solution"),
        ("reference", {"demonstration": "reference"}, "consider objective.demonstration reference"),
    ],
)
def test_information_that_would_help_the_teacher_more_is_named(
    information: Information, told: dict[str, str], remedy: str
) -> None:
    helps, does_not = with_gap(information, 0.5), with_gap(information, 0.3)
    assert f"changes accuracy by +50 points: {remedy}" in " ".join(advice(config(), helps))
    assert remedy not in " ".join(advice(config(), does_not))
    assert remedy not in " ".join(advice(config(objective=told), helps)), "it is told already"
    assert remedy not in " ".join(advice(config(objective={"name": "grpo"}), helps)), "there is no teacher"

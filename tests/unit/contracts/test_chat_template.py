"""Arguments of the chat template: what is accepted, what student and teacher get, and which ones change nothing."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from services.contracts.chat_template import RESERVED, unused_arguments
from services.contracts.errors import ConfigurationError
from services.contracts.run_config import RunConfig, parse_run_config, read_run_config


def config(student: Any = None, teacher: Any = None, **objective: Any) -> RunConfig:
    model = {"path": "m"} | ({} if student is None else {"chat_template_kwargs": student})
    objective |= {} if teacher is None else {"teacher_chat_template_kwargs": teacher}
    values = {"name": "r", "model": model, "data": {"train": "t"}, "training": {"steps": 1}, "objective": objective}
    return parse_run_config(values)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (None, None, ({"enable_thinking": False}, {"enable_thinking": False})),
        ({"enable_thinking": True}, None, ({"enable_thinking": True}, {"enable_thinking": True})),
        (None, {"enable_thinking": True}, ({"enable_thinking": False}, {"enable_thinking": True})),
        (
            {"reasoning_effort": "low"},
            {},
            ({"enable_thinking": False, "reasoning_effort": "low"}, {"enable_thinking": False}),
        ),
        ({"enable_thinking": None, "n": 1}, None, ({"enable_thinking": None, "n": 1},) * 2),
    ],
)
def test_the_teacher_reads_the_students_template_unless_it_has_its_own(
    student: Any, teacher: Any, expected: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    for run in (given := config(student, teacher), read_run_config(given.model_dump_json())):
        assert (run.model.chat_template_kwargs, run.teacher_chat_template_kwargs) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "must be names with values"),
        ({"a": [1]}, "a must be a text, a number, true, false or null"),
        ({"a": {"b": 1}}, "a must be a text, a number, true, false or null"),
        ({"max_length": 5}, "max_length is set by Turnout"),
        ({"no name": 1}, "'no name' is not a name that a template can use"),
        ({"a": 2**60}, "a must be a finite number"),
        ({"a": "x" * 10_001}, "at most 10,000 characters"),
        ({f"a{number}": 1 for number in range(33)}, "at most 32 names"),
    ],
)
def test_what_a_template_cannot_take_is_refused_by_name(given: Any, message: str) -> None:
    for wrong, field in (((given, None), "model"), ((None, given), "objective.teacher")):
        with pytest.raises(ConfigurationError, match=message) as caught:
            config(*wrong)
        assert f"{field}" in str(caught.value)


def test_an_objective_without_a_teacher_takes_no_arguments_for_one() -> None:
    with pytest.raises(ConfigurationError, match=r"objective\.teacher_chat_template_kwargs"):
        config(None, {"enable_thinking": True}, name="grpo")


def test_every_parameter_of_the_rendering_itself_is_reserved() -> None:
    parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    assert {name for name, item in parameters.items() if item.kind is not item.VAR_KEYWORD} <= RESERVED


def test_only_arguments_that_were_set_and_do_not_occur_are_unused() -> None:
    template = "{% if reasoning_effort is defined %}{{ reasoning_effort }}{% endif %}"
    given: dict[str, Any] = {"enable_thinking": False, "reasoning_effort": "low", "effort": 3, "reasoning": None}
    assert unused_arguments(template, given) == ["effort", "reasoning"]
    assert unused_arguments(template, {"enable_thinking": True}) == ["enable_thinking"]

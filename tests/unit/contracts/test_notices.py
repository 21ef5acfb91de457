"""What is said of a valid run configuration: another objective's settings, thinking that is judged as an answer."""

from __future__ import annotations

from typing import Any

import pytest

from services.contracts.notices import notices
from services.contracts.run_config import parse_run_config

MINIMAL: dict[str, Any] = {
    "name": "try",
    "model": {"path": "m"},
    "data": {"train": "t.jsonl"},
    "training": {"steps": 3},
}


def told(**changes: Any) -> list[str]:
    return notices(parse_run_config(MINIMAL | changes).model_dump(mode="json"))


def test_grpo_without_its_preset_has_srpos_rate_minibatches_and_staleness() -> None:
    assert told(objective={"name": "grpo"}) == [
        "objective.name is grpo, but these settings are the ones for srpo: "
        "training.max_staleness 1 (paper-grpo: 0), training.prompts_per_minibatch null (paper-grpo: 8), "
        "optimizer.learning_rate 5e-06 (paper-grpo: 1e-06). "
        "Set `preset: paper-grpo`; fields in the file take precedence."
    ]


def test_a_null_that_means_the_same_is_not_told() -> None:
    [text] = told(objective={"name": "grpo"}, training={"steps": 3, "prompts_per_step": 8})
    assert "learning_rate" in text
    assert "prompts_per_minibatch" not in text, "null is all 8 prompts of the step"


def test_another_objectives_preset_is_told_too() -> None:
    [text] = told(preset="paper-grpo", objective={"name": "srpo"})
    assert "these settings are the ones for grpo" in text
    assert "optimizer.learning_rate 1e-06 (paper-srpo: 5e-06)" in text
    assert "clip" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"preset": "paper-srpo"},
        {"preset": "paper-sdpo"},
        {"preset": "paper-grpo", "optimizer": {"learning_rate": 5e-6}},
        {"objective": {"name": "advantage_mix"}},
        {
            "objective": {"name": "sdpo"},
            "optimizer": {"learning_rate": 3e-5},
            "training": {"steps": 1, "max_staleness": 2, "prompts_per_minibatch": 16},
        },
    ],
)
def test_nothing_is_said_where_all_is_as_meant(changes: dict[str, Any]) -> None:
    assert told(**changes) == []


def test_thinking_that_rewards_would_read_is_told() -> None:
    model = {"path": "m", "chat_template_kwargs": {"enable_thinking": True}}
    [text] = told(model=model)
    assert "rewards read the reasoning" in text
    assert "`model.thinking: {}`" in text
    assert told(model=model | {"thinking": {}}) == []

"""A run may resume with another number of ranks and another ZeRO stage: weights, moments and teacher are what they
would have been without the interruption."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from tests.services.learner.engine_runs import EngineRuns, largest_difference

STAGES = (0, 2, 3)
CROSSINGS = [(1, 0, 2), (2, 0, 1), (2, 3, 1), (1, 2, 2)]
"""Ranks and ZeRO stage that wrote the state, and ranks that resume from it."""


@pytest.fixture(scope="module")
def resumed(engine_runs: EngineRuns) -> dict[tuple[int, int, int], dict[int, dict[str, Any]]]:
    """By crossing and stage: the same three updates after the state was imported."""
    return {
        crossing: engine_runs.resumed(crossing[:2], crossing[2], STAGES, "float32", "full") for crossing in CROSSINGS
    }


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("crossing", CROSSINGS)
def test_a_run_resumes_on_another_number_of_ranks_as_if_uninterrupted(
    engine_runs: EngineRuns, resumed: dict[tuple[int, int, int], Any], crossing: tuple[int, int, int], stage: int
) -> None:
    num_ranks, source, _ = crossing
    undisturbed = engine_runs.result(num_ranks, source)
    found = resumed[crossing][stage]
    for name, before in (("later", "weights"), ("later_state", "state"), ("later_teacher", "teacher")):
        assert largest_difference(found[name.replace("later", "taken")], undisturbed[before]) == 0.0
        assert largest_relative_difference(found[name], undisturbed[name]) < 1e-5, name
        assert largest_relative_difference(undisturbed[before], undisturbed[name]) > 1e-2, "nothing moves"


@pytest.mark.parametrize("stage", [1, 3])
def test_bfloat16_keeps_its_float32_masters(engine_runs: EngineRuns, stage: int) -> None:
    """Bit for bit; what follows differs by the order in which bfloat16 gradients are summed over ranks."""
    found = engine_runs.resumed((2, 2), 1, (stage,), "bfloat16", "full")[stage]
    source = engine_runs.result(2, 2, "bfloat16")
    for name, expected in (("taken", "weights"), ("taken_state", "state"), ("taken_teacher", "teacher")):
        assert largest_difference(found[name], source[expected]) == 0.0
    assert any(name.endswith("/master") for name in found["taken_state"])


@pytest.mark.parametrize("stage", [1, 3])
def test_an_adapter_resumes_on_another_number_of_ranks(engine_runs: EngineRuns, stage: int) -> None:
    found = engine_runs.resumed((2, 3), 1, (stage,), "float32", "lora")[stage]
    expected = engine_runs.result(2, 3, kind="lora")
    for name in ("later", "later_state", "later_teacher"):
        assert largest_relative_difference(found[name], expected[name]) < 1e-5, name


def largest_relative_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Over all tensors, relative to each tensor's largest element."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name].float() - value.float()).abs().max() / value.float().abs().max().clamp(min=1e-30))
        for name, value in expected.items()
    )

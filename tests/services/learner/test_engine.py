"""The engine against plain PyTorch: ZeRO 0, 1, 2, 3 on one and two ranks, in real processes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from services.contracts.run_config import OptimizerSection, parse_run_config
from services.learner.model.engine import learning_rate, warmup_warning
from tests.services.learner.engine_program import NUM_UPDATES, batches, row_loss, run_config, tiny_model, trained_model
from tests.services.learner.engine_runs import (
    MIXED_STAGES,
    OFFLOAD_STAGES,
    STAGES,
    EngineRuns,
    largest_difference,
    named,
)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """The same training in plain PyTorch, float32, one process, whole batches."""
    model, config = tiny_model(), run_config(0, "float32")
    teacher = copy.deepcopy(model)
    section = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=section.betas, eps=section.epsilon, weight_decay=section.weight_decay
    )
    snapshots, norms = [], []
    for update, rows in enumerate(batches()):
        torch.stack([row_loss(model, row) for row in rows]).sum().backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), section.gradient_clip)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(section, update, config.training.steps)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for average, parameter in zip(teacher.parameters(), model.parameters(), strict=True):
                average.mul_(0.95).add_(parameter, alpha=0.05)
        snapshots.append((named(model), named(teacher)))
    logits = teacher(input_ids=batches()[0, :1]).logits.detach()
    return {"snapshots": snapshots, "norms": norms, "teacher_logits": logits}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_updates_equal_plain_adamw(
    engine_runs: EngineRuns, reference: dict[str, Any], num_ranks: int, stage: int
) -> None:
    result = engine_runs.result(num_ranks, stage)
    after_three, after_six = reference["snapshots"][NUM_UPDATES - 1][0], reference["snapshots"][-1][0]
    assert largest_difference(result["weights"], after_three) < 5e-6
    assert largest_difference(result["later"], after_six) < 5e-6
    assert result["norms"] == pytest.approx(reference["norms"], rel=1e-5)
    moved = largest_difference(result["weights"], named(tiny_model()))
    assert moved > 1e-2, "the comparison would also hold for a model that never moves"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_teacher_is_the_moving_average(
    engine_runs: EngineRuns, reference: dict[str, Any], num_ranks: int, stage: int
) -> None:
    """Checks what its passes compute, not only what is stored. Fails if the teacher never moves (ZeRO-3, 2 ranks)."""
    result = engine_runs.result(num_ranks, stage)
    assert largest_difference(result["teacher"], reference["snapshots"][NUM_UPDATES - 1][1]) < 5e-6
    assert largest_difference(result["teacher"], named(tiny_model())) > 1e-3
    assert torch.allclose(result["teacher_logits"], reference["teacher_logits"], atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_exported_state_is_imported_bit_for_bit(engine_runs: EngineRuns, num_ranks: int, stage: int) -> None:
    result = engine_runs.result(num_ranks, stage)
    assert largest_difference(result["later"], result["resumed_later"]) == 0.0
    assert largest_difference(result["later_teacher"], result["resumed_later_teacher"]) == 0.0


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_non_finite_gradients_on_one_rank_are_rejected_and_change_nothing(
    engine_runs: EngineRuns, num_ranks: int, stage: int
) -> None:
    result = engine_runs.result(num_ranks, stage)
    for name in ("later", "later_state", "later_teacher"):
        assert largest_difference(result[f"refused_{name}"], result[f"resumed_{name}"]) == 0.0


@pytest.mark.parametrize("prefixes", ["shared", "single"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_updates_do_not_depend_on_ranks_stage_or_sharing(
    engine_runs: EngineRuns, kind: str, num_ranks: int, stage: int, prefixes: str
) -> None:
    found = engine_runs.result(num_ranks, stage, kind=kind)[prefixes]
    expected = engine_runs.result(1, 0, kind=kind)["single"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    largest = max(float(value.abs().max()) for value in expected["weights"].values())
    assert largest_difference(found["weights"], expected["weights"]) <= 1e-5 * largest
    assert largest_difference(found["weights"], named(trained_model(run_config(stage, "float32", kind)))) > 1e-3


@pytest.mark.parametrize("stage", MIXED_STAGES)
def test_shared_prefixes_fit_bfloat16(engine_runs: EngineRuns, stage: int) -> None:
    result = engine_runs.result(2, stage, "bfloat16")
    assert result["shared"]["losses"] == pytest.approx(result["single"]["losses"], rel=0.02)


@pytest.mark.parametrize("stage", MIXED_STAGES)
def test_bfloat16_keeps_float32_masters_and_averages(engine_runs: EngineRuns, stage: int) -> None:
    result = engine_runs.result(2, stage, "bfloat16")
    master = {name.removesuffix("/master"): value for name, value in result["state"].items() if "master" in name}
    assert all(value.dtype == torch.bfloat16 for value in result["weights"].values())
    assert largest_difference({n: v.bfloat16() for n, v in master.items()}, result["weights"]) == 0.0
    assert any(bool((value != value.bfloat16().float()).any()) for value in master.values())
    assert any(bool((value != value.bfloat16().float()).any()) for value in result["teacher"].values())
    assert largest_difference(result["later"], result["resumed_later"]) == 0.0
    assert largest_difference(result["later_teacher"], result["resumed_later_teacher"]) == 0.0


@pytest.mark.parametrize(("dtype", "stage", "tolerance"), [("bfloat16", 2, 0.0), ("float32", 3, 2e-6)])
def test_an_optimizer_in_cpu_memory_makes_the_same_updates(
    engine_runs: EngineRuns, dtype: str, stage: int, tolerance: float
) -> None:
    """Bit for bit if DeepSpeed sums the norm of the gradients in the same order, which it does not under ZeRO 3."""
    found, plain = (engine_runs.result(2, stage, dtype, kind) for kind in ("offload", "full"))
    assert found["norms"] == pytest.approx(plain["norms"], rel=1e-6)
    for name in ("weights", "state", "teacher", "later", "later_state", "later_teacher"):
        assert largest_difference(found[name], plain[name]) <= tolerance, name


@pytest.mark.parametrize("stage", OFFLOAD_STAGES)
def test_a_run_with_its_optimizer_in_cpu_memory_resumes_exactly(engine_runs: EngineRuns, stage: int) -> None:
    found = engine_runs.result(2, stage, "bfloat16", "offload")
    for name in ("later", "later_state", "later_teacher"):
        assert largest_difference(found[name], found[f"resumed_{name}"]) == 0.0
        assert largest_difference(found[f"refused_{name}"], found[f"resumed_{name}"]) == 0.0, "NaN changes nothing"


def test_a_checkpoint_fits_an_optimizer_in_cpu_memory_and_elsewhere(engine_runs: EngineRuns) -> None:
    moved = engine_runs.resumed((2, 2), 2, (2,), "bfloat16", "offload", "full")[2]
    kept = engine_runs.result(2, 2, "bfloat16")
    for name in ("later", "later_state", "later_teacher"):
        assert largest_difference(moved[name], kept[name]) == 0.0


def test_a_warm_up_that_outlasts_the_run_causes_a_warning() -> None:
    def warning(warmup_steps: int) -> str | None:
        values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 3}}
        return warmup_warning(parse_run_config(values | {"optimizer": {"warmup_steps": warmup_steps}}))

    assert warning(30) is None
    told = warning(3000)
    assert told is not None
    assert "warmup_steps is 3000, but the run has only 3 training steps" in told
    assert "5.0e-09" in told


def test_learning_rate_schedules() -> None:
    def rates(schedule: Any) -> list[float]:
        section = OptimizerSection(learning_rate=1.0, warmup_steps=4, schedule=schedule)
        return [learning_rate(section, step, 12) for step in range(12)]

    for schedule in ("constant", "linear", "cosine"):
        assert rates(schedule)[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates("constant")[4:] == [1.0] * 8
    assert rates("linear")[4:] == pytest.approx([1.0 - n / 8 for n in range(8)])
    assert rates("cosine")[8] == pytest.approx(0.5)
    assert 0 < rates("cosine")[-1] < 0.05

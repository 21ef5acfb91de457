"""Whole optimizer updates on real engines: ZeRO 0 to 3, one and two ranks, memory options, small steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.contracts.run_config import RunConfig
from tests.services.learner.engine_program import VOCABULARY, tiny_model
from tests.services.learner.engine_runs import largest_difference, named, run_ranks
from tests.services.learner.objectives import builders, reference
from tests.services.learner.programs import Programs
from tests.services.learner.update_program import (
    CASES,
    SMALL_RATE,
    SMALL_UPDATES,
    stages_of,
    step_config,
    step_minibatches,
)

Updates = dict[int, dict[str, dict[str, Any]]]
NUM_RANKS = (1, 2)


@pytest.fixture(scope="module")
def updates(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Updates:
    """By number of ranks and `<case>-<stage>`."""
    made = {}
    for num_ranks in NUM_RANKS:
        file = tmp_path_factory.mktemp("updates") / "found.pt"
        run_ranks(programs, "updates", num_ranks, ["updates", str(file), ",".join(CASES)])
        made[num_ranks] = torch.load(file, weights_only=True)
    return made


@pytest.mark.parametrize(("case", "stage"), [(case, stage) for case in CASES for stage in stages_of(case)])
@pytest.mark.parametrize("num_ranks", NUM_RANKS)
def test_every_stage_and_number_of_ranks_make_the_same_updates(
    updates: Updates, case: str, num_ranks: int, stage: int
) -> None:
    """Teacher, initial model and dynamic weights included; on two ranks, one has no sequence for SDPO."""
    found, expected = updates[num_ranks][f"{case}-{stage}"], updates[1][f"{case}-{stages_of(case)[0]}"]
    for row, other in zip(found["rows"], expected["rows"], strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    for name in ("weights", "teacher"):
        assert largest_difference(found[name], expected[name]) < 1e-5


@pytest.mark.parametrize("case", ["full", "lora"])
def test_the_policy_departs_from_the_initial_model(updates: Updates, case: str) -> None:
    divergences = [row[1] for row in updates[1][f"{case}-0"]["rows"]]
    assert divergences[0] == pytest.approx(0.0, abs=1e-6)
    assert 0 < divergences[1] < divergences[2]


def test_after_a_restart_the_reference_is_still_the_initial_model(updates: Updates) -> None:
    assert updates[1]["restarted-1"]["rows"][0][1] > 1e-3


def test_no_update_moves_another_model_as_the_teacher(updates: Updates) -> None:
    found = updates[1]["fixed-1"]
    initial = {name: value.detach() for name, value in builders.large_teacher(vocabulary=VOCABULARY).named_parameters()}
    assert largest_difference(found["teacher"], initial) == 0.0
    assert found["rows"][0][2] != pytest.approx(updates[1]["full-1"]["rows"][0][2], rel=1e-2), "it is not the student"


def test_a_run_with_another_model_as_the_teacher_resumes_exactly(programs: Programs, tmp_path: Path) -> None:
    """Its checkpoint says which model that was; a changed one is refused, a fork with another path is not."""
    run_ranks(programs, "updates", 1, ["fixed", str(tmp_path)])
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert largest_difference(found["whole"], found["resumed"]) == 0.0
    assert largest_difference(found["whole"], named(builders.tiny_model(7))) > 1e-2
    assert "teacher.safetensors" not in found["files"]
    assert found["refusal"].startswith("objective.teacher_path: objective.teacher_path is ")
    assert "have changed since the checkpoint" in found["refusal"]


@pytest.mark.parametrize(("dtype", "num_ranks", "stage"), [("float32", 1, 0), ("bfloat16", 2, 2)])
def test_a_run_with_its_base_in_4_bits_publishes_what_it_trains_and_resumes_exactly(
    programs: Programs, tmp_path: Path, dtype: str, num_ranks: int, stage: int
) -> None:
    """The checkpoint's folder is a whole model, which gives the policy's own logits."""
    from transformers import AutoModelForCausalLM

    run_ranks(programs, "updates", num_ranks, ["quantized", str(tmp_path), dtype, str(stage)])
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, other in (("whole", "resumed"), ("saved", "restored")):
        first, second = found[name], found[other]
        for key in first if name == "saved" else ("",):
            assert largest_difference(first[key] if key else first, second[key] if key else second) == 0.0
    published = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints/step-00000001/hf")
    assert not hasattr(published.config, "quantization_config")
    assert largest_difference(found["checkpoint"], named(published)) == 0.0
    with torch.no_grad():
        logits = published(input_ids=found["row"]).logits
    differences = torch.log_softmax(logits.float(), -1) - torch.log_softmax(found["logits"].float(), -1)
    assert differences.abs().mean() < (1e-5 if dtype == "float32" else 0.05)
    assert largest_difference(found["first"], found["dequantized"]) == 0.0, "an adapter of zeros changes nothing"
    assert largest_difference(found["first"], found["checkpoint"]) > 1e-2, "the adapter was merged"
    other, moved = found["refusals"]
    assert other.startswith("model.lora: The run cannot continue with this model.lora")
    assert moved.startswith("model.path: model.path is ")
    assert "are not those of the checkpoint" in moved


@pytest.mark.parametrize("case", ["checkpointing", "offload"])
def test_memory_options_change_no_number(updates: Updates, case: str) -> None:
    for num_ranks in NUM_RANKS:
        for stage in stages_of(case):
            found, plain = updates[num_ranks][f"{case}-{stage}"], updates[num_ranks][f"full-{stage}"]
            for row, other in zip(found["rows"], plain["rows"], strict=True):
                assert row == pytest.approx(other, rel=1e-6, abs=1e-7)
            assert largest_difference(found["weights"], plain["weights"]) < 1e-7
            assert largest_difference(plain["weights"], named(tiny_model())) > 1e-3


@pytest.fixture(scope="module")
def expected_step(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One step of two updates in float64, by the reference's loops: pi_old of both is the policy before the first."""
    folder = tmp_path_factory.mktemp("step") / "model"
    builders.tiny_model(7).save_pretrained(folder)
    run = step_config(str(folder), 0)
    student, teacher = builders.tiny_model(7, torch.float64), builders.tiny_model(7, torch.float64)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=1.0, betas=run.optimizer.betas, eps=1.0, weight_decay=run.optimizer.weight_decay
    )
    minibatches = step_minibatches()
    old = [logprobs(student, batch) for batch in minibatches]
    losses, faults = [], {}
    for batch, before in zip(minibatches, old, strict=True):
        wrong = {
            "the teacher is the student": (student, before),
            "the teacher stays the initial model": (builders.tiny_model(7, torch.float64), before),
            "ratios are fixed at 1": (teacher, None),
        }
        faults = {
            name: float(update_loss(student, model, batch, olds, run).detach()) for name, (model, olds) in wrong.items()
        }
        loss = update_loss(student, teacher, batch, before, run)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for average, parameter in zip(teacher.parameters(), student.parameters(), strict=True):
                average.lerp_(parameter, run.objective.teacher_ema_rate)
    return {
        "model": str(folder),
        "losses": losses,
        "faults": faults,
        "weights": named(student),
        "teacher": named(teacher.requires_grad_()),
    }


def update_loss(student: Any, teacher: Any, batch: Any, old: Any, run: RunConfig) -> Tensor:
    loss: Tensor = reference.minibatch_loss(student, teacher, batch, old, run)[0]
    return loss


def logprobs(model: Any, batch: Any) -> list[Tensor]:
    with torch.no_grad():
        rows = [
            [
                reference.log_softmax(logits)[token]
                for logits, token in zip(
                    reference.response_logits(model, item.prompt_ids, item.response_ids), item.response_ids, strict=True
                )
            ]
            for item in batch
        ]
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


@pytest.fixture(scope="module", params=[(1, 0), (2, 1), (2, 3)], ids=["1-rank", "2-ranks", "2-ranks-zero-3"])
def found_step(
    programs: Programs,
    tmp_path_factory: pytest.TempPathFactory,
    expected_step: dict[str, Any],
    request: pytest.FixtureRequest,
) -> dict[str, Any]:
    num_ranks, stage = request.param
    file = tmp_path_factory.mktemp("found") / "found.pt"
    run_ranks(programs, "updates", num_ranks, ["step", str(file), expected_step["model"], str(stage)])
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


FAULTS = ("the teacher is the student", "the teacher stays the initial model", "ratios are fixed at 1")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_independent_srpo_would_show_in_the_second_update(
    found_step: dict[str, Any], expected_step: dict[str, Any], fault: str
) -> None:
    """It had no moving average, and a shortcut for on-policy training fixed its ratios at 1. Its third fault, weights
    normalised per micro-batch, has its test in `objectives/test_minibatch`."""
    assert found_step["losses"][1] != pytest.approx(expected_step["faults"][fault], rel=1e-4)


def test_pi_old_of_all_minibatches_is_the_policy_before_the_first(
    found_step: dict[str, Any], expected_step: dict[str, Any]
) -> None:
    found = found_step
    assert found["losses"] == pytest.approx(expected_step["losses"], rel=1e-5)
    for name in ("weights", "teacher"):
        assert largest_difference(found[name], expected_step[name]) < 1e-5
    assert largest_difference(found["weights"], named(builders.tiny_model(7))) > 1e-2


@pytest.fixture(scope="module")
def teachers(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """By `<case>-<stage>`: student and teacher after each of six updates, two a step."""
    file = tmp_path_factory.mktemp("teachers") / "found.pt"
    run_ranks(programs, "updates", 1, ["teacher", str(file)])
    found: dict[str, list[dict[str, Any]]] = torch.load(file, weights_only=True)
    return found


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize(
    ("case", "copied"),
    [
        ("frozen", [None] * 6),
        ("every", [None, None, None, 3, 3, 3]),  # after the second step, of two updates
        ("resumed", [None, 1, 1, 1, 1, 5]),  # from step 3 on: after steps 4 and 6
        ("gated", [None, None, None, None, 3, 3]),  # when it is told to, before an update
    ],
)
def test_a_teacher_is_frozen_or_a_copy_of_the_policy(
    teachers: dict[str, list[dict[str, Any]]], case: str, copied: list[int | None], stage: int
) -> None:
    """`copied`: the update after which the teacher was last the student; None for the initial model."""
    rows, initial = teachers[f"{case}-{stage}"], named(tiny_model())
    for row, source in zip(rows, copied, strict=True):
        expected = initial if source is None else rows[source]["student"]
        assert largest_difference(row["teacher"], {name: expected[name] for name in row["teacher"]}) == 0.0
        assert largest_difference(row["teacher"], {name: row["student"][name] for name in row["teacher"]}) > 0 or (
            rows[source or 0] is row
        )


@pytest.mark.parametrize("stage", [0, 3])
def test_the_moving_average_moves_after_each_update(teachers: dict[str, list[dict[str, Any]]], stage: int) -> None:
    average = named(tiny_model())
    for row in teachers[f"ema-{stage}"]:
        average = {name: 0.95 * value + 0.05 * row["student"][name] for name, value in average.items()}
        assert largest_difference(row["teacher"], average) < 1e-6


def test_updates_below_bfloat16s_precision_add_up(programs: Programs, tmp_path: Path) -> None:
    """The float32 masters keep them; a bfloat16 optimizer would lose all of them for weights of this size."""
    file = tmp_path / "found.pt"
    stages = [1, 3]
    run_ranks(programs, "updates", 1, ["small", str(file), ",".join(map(str, stages))])
    found, start = torch.load(file, weights_only=True), named(tiny_model("bfloat16"))
    for stage in stages:
        moved = changed = total = 0
        for name, begun in start.items():
            master, rounded = found[stage]["state"][f"{name}/master"], found[stage]["weights"][name]
            assert torch.equal(master.bfloat16(), rounded)
            lost = (begun.float() + SMALL_RATE).bfloat16() == begun  # one update vanishes when it is rounded
            lost &= (begun.float() - SMALL_RATE).bfloat16() == begun
            distance = (master - begun.float()).abs()[lost]
            moved += int((distance > 0.5 * SMALL_UPDATES * SMALL_RATE).sum())
            changed += int((rounded != begun)[lost].sum())
            total += int(lost.sum())
        assert moved > 0.5 * total > 1000
        assert changed > 0.1 * total

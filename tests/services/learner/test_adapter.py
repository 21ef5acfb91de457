"""LoRA: only the adapter is trained, published and kept, under every ZeRO stage, in PEFT's format."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.contracts.errors import ConfigurationError
from services.contracts.model import ModelSection
from services.learner.model import lora, quantized
from services.learner.model.engine import learning_rate
from services.learner.model.export import whole_weights
from tests.services.learner.engine_program import NUM_UPDATES, batches, row_loss, run_config, tiny_model, trained_model
from tests.services.learner.engine_runs import MIXED_STAGES, STAGES, EngineRuns, largest_difference, named

CONFIG = run_config(0, "float32", "lora")


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """The same training of a PEFT model in plain PyTorch, float32, one process, whole batches."""
    model = trained_model(CONFIG)
    teacher, section = copy.deepcopy(model), CONFIG.optimizer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    averages = [parameter for parameter in teacher.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=1.0, betas=section.betas, eps=section.epsilon, weight_decay=section.weight_decay
    )
    snapshots = []
    for update, rows in enumerate(batches()):
        torch.stack([row_loss(model, row) for row in rows]).sum().backward()
        nn.utils.clip_grad_norm_(trained, section.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(section, update, CONFIG.training.steps)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for average, parameter in zip(averages, trained, strict=True):
                average.mul_(0.95).add_(parameter, alpha=0.05)
        snapshots.append((named(model), named(teacher)))
    row = batches()[0, :1]
    with torch.no_grad():
        logits = {name: item(input_ids=row).logits for name, item in (("student", model), ("teacher", teacher))}
        logits["reference"] = tiny_model()(input_ids=row).logits
    return {"snapshots": snapshots, "logits": logits}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_only_the_adapter_is_trained(
    engine_runs: EngineRuns, reference: dict[str, Any], num_ranks: int, stage: int
) -> None:
    result = engine_runs.result(num_ranks, stage, kind="lora")
    assert result["weights"].keys() == named(trained_model(CONFIG)).keys()
    assert largest_difference(result["weights"], reference["snapshots"][NUM_UPDATES - 1][0]) < 5e-6
    assert largest_difference(result["later"], reference["snapshots"][-1][0]) < 5e-6
    assert largest_difference(result["weights"], named(trained_model(CONFIG))) > 1e-2
    assert {name.rsplit("/", 1)[0] for name in result["state"]} == set(result["weights"])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_teacher_and_initial_model_share_the_base(
    engine_runs: EngineRuns, reference: dict[str, Any], num_ranks: int, stage: int
) -> None:
    """Three policies in one model: none of their passes sees another's adapter."""
    result = engine_runs.result(num_ranks, stage, kind="lora")
    assert largest_difference(result["teacher"], reference["snapshots"][NUM_UPDATES - 1][1]) < 5e-6
    assert largest_difference(result["teacher"], named(trained_model(CONFIG))) > 1e-3
    for name, expected in reference["logits"].items():
        assert torch.allclose(result[f"{name}_logits"], expected, atol=1e-5), name
    assert not torch.allclose(result["teacher_logits"], result["reference_logits"], atol=1e-3)
    assert not torch.allclose(result["teacher_logits"], result["student_logits"], atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "stage"), [*(("float32", stage) for stage in STAGES), *(("bfloat16", stage) for stage in MIXED_STAGES)]
)
def test_resuming_loses_no_bit(engine_runs: EngineRuns, dtype: str, stage: int) -> None:
    result = engine_runs.result(2 if dtype == "float32" else 1, stage, dtype, "lora")
    for name in ("later", "later_state", "later_teacher"):
        assert largest_difference(result[name], result[f"resumed_{name}"]) == 0.0
    if dtype == "bfloat16":
        assert all(value.dtype == torch.bfloat16 for value in result["weights"].values())
        assert any(bool((value != value.bfloat16().float()).any()) for value in result["teacher"].values())


def with_lora(**changes: Any) -> ModelSection:
    assert CONFIG.model.lora is not None
    return CONFIG.model.model_copy(update={"lora": CONFIG.model.lora.model_copy(update=changes)})


def moved_model() -> nn.Module:
    """An adapter that has an effect: B is not zero."""
    model = trained_model(CONFIG)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return model


def written(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    weights = lora.file_names(whole_weights(model, 0, trained_only=True))
    folder.mkdir(exist_ok=True)
    lora.write(folder, weights, model)
    return weights


def test_peft_reads_what_is_written(tmp_path: Path) -> None:
    from peft import PeftModel

    model = moved_model()
    written(tmp_path, model)
    loaded = PeftModel.from_pretrained(tiny_model(), str(tmp_path))
    row = batches()[0, :1]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=row).logits, model(input_ids=row).logits)
        assert not torch.allclose(loaded(input_ids=row).logits, tiny_model()(input_ids=row).logits, atol=1e-3)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8, ["down_proj", "q_proj", "v_proj"])


def test_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    """A resumed learner publishes a version again; its checksum must not change."""
    for name in ("first", "second"):
        written(tmp_path / name, moved_model())
    for file in (lora.WEIGHTS_FILE, lora.CONFIG_FILE):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_written_adapter_can_be_loaded(tmp_path: Path) -> None:
    model = moved_model()
    written(tmp_path, model)
    fresh = trained_model(CONFIG)
    lora.load(fresh, tmp_path)
    assert largest_difference(named(fresh), named(model)) == 0.0


def test_a_checkpoint_of_another_kind_of_training_is_rejected_by_field(tmp_path: Path) -> None:
    written(tmp_path, moved_model())
    other = run_config(0, "float32", "lora").model.model_copy(
        update={"lora": CONFIG.model.lora.model_copy(update={"rank": 2})}
    )  # type: ignore[union-attr]
    for attempt in (
        lambda: lora.load(lora.inject(tiny_model(), other), tmp_path),
        lambda: lora.load(trained_model(CONFIG), tmp_path / "whole"),
        lambda: lora.refuse_adapter(tmp_path),
    ):
        with pytest.raises(ConfigurationError) as caught:
            attempt()
        assert caught.value.field == "model.lora"


def test_a_missing_bitsandbytes_is_reported_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda _: None)
    quantized.check_installed(CONFIG.model)
    for ask in (quantized.check_installed, quantized.loading_options):
        with pytest.raises(ConfigurationError, match=r"turnout\[quantized\]") as caught:
            ask(with_lora(load_in_4bit=True))
        assert caught.value.field == "model.lora.load_in_4bit"


def test_missing_layers_are_rejected_by_field() -> None:
    with pytest.raises(ConfigurationError, match="no_such_layer") as caught:
        lora.inject(tiny_model(), with_lora(target_modules=("no_such_layer",)))
    assert caught.value.field == "model.lora.target_modules"


def test_all_linear_leaves_the_head_alone() -> None:
    section = CONFIG.model.model_copy(
        update={"lora": CONFIG.model.lora.model_copy(update={"target_modules": "all-linear"})}
    )  # type: ignore[union-attr]
    layers = {name.split(".")[-4] for name in named(lora.inject(tiny_model(), section))}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

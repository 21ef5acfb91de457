"""Settings that save memory take effect and change no number (see also `test_updates`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from services.contracts.model import ModelSection
from services.learner.model.ema import EmaTeacher
from services.learner.model.export import load_model
from services.learner.packing.sequence import TrainSequence
from services.learner.update.update import run_minibatch
from tests.services.learner.objectives.builders import PlainEngine, random_sequences, run_config, tiny_model


def test_gradient_checkpointing_recomputes_layers_and_changes_no_gradient(tmp_path: Path) -> None:
    tiny_model(1).save_pretrained(tmp_path)
    section = ModelSection(path=str(tmp_path), dtype="float32")
    calls, gradients, losses = {}, {}, {}
    for on in (False, True):
        engine = PlainEngine()
        engine.student = model = load_model(section, str(tmp_path), gradient_checkpointing=on, allow_remote_code=False)  # type: ignore[assignment]
        seen: list[int] = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))  # type: ignore[union-attr,index]
        report = run_minibatch(engine, random_sequences(8, 12), None, run_config(name="srpo", top_k=5))
        calls[on], gradients[on], losses[on] = len(seen), engine.gradients, report.loss
    # Passes without gradients (of responses with advantage 0) are not recomputed.
    assert calls[True] - calls[False] == engine.num_backward
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)
    scale = max(float(value.abs().max()) for value in gradients[False].values())
    for name, value in gradients[False].items():
        assert float((gradients[True][name] - value).abs().max()) <= 1e-6 * scale, name


class Journal(nn.Linear):
    """A teacher's model that records which device it is moved to."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.places: list[str] = []

    def to(self, *arguments: Any, **named: Any) -> Journal:
        self.places.append(str(arguments[0]))
        return self


def test_an_offloaded_teacher_rests_in_cpu_memory() -> None:
    """As far as a machine without a GPU can show: where it is moved, and that its averages are separate tensors."""
    model, student = Journal(), nn.Linear(3, 3)
    teacher = EmaTeacher(model, 0.5, torch.device("cuda:0"), offload=True)
    teacher.attach(student)
    assert model.places == ["cpu"], "it is in CPU memory before the first step too"
    teacher.to_passes()
    teacher.to_rest()
    assert model.places == ["cpu", "cuda:0", "cpu"]
    begun = model.weight.detach().clone()
    teacher.update()
    average = next(teacher.full_averages())
    assert average.device.type == "cpu"
    assert average.data_ptr() != model.weight.data_ptr()
    assert torch.allclose(average, (begun + student.weight) / 2)
    assert torch.equal(average, model.weight), "passes see the average"


def test_only_what_is_routed_to_sdpo_costs_a_teacher_pass() -> None:
    """The teacher's inputs are the enriched prompts of SDPO's rollouts and no others."""
    marked, plain = 28, list(range(1, 20))
    sequences = [
        TrainSequence([marked, 5], [marked, 6], [-1.0, -1.0], 0.5, "grpo", None),
        TrainSequence([3, 5], [7, 6, 8], [-1.0] * 3, -0.5, "sdpo", [3, 9, 5]),
        TrainSequence([marked], [marked], [-1.0], 0.0, "none", None),
        TrainSequence([3, 5], [8], [-1.0], -0.5, "sdpo", [3, 9, 5]),
    ]
    engine, seen = PlainEngine(), []
    engine.teacher.register_forward_pre_hook(
        lambda _, arguments, named: seen.extend(named["input_ids"].unique().tolist()), with_kwargs=True
    )
    report = run_minibatch(engine, sequences, None, run_config(name="srpo", top_k=5))
    assert report.sums["num_teacher_rollouts"] == 2
    assert report.sums["num_teacher_tokens"] == 4
    assert seen
    assert marked not in seen
    assert {3, 9, 5, 7, 6} <= set(seen) <= {0, *plain}


def test_a_models_own_dropout_is_off(tmp_path: Path) -> None:
    """Rollouts are sampled without it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=29, n_positions=32, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    section = ModelSection(path=str(tmp_path), dtype="float32")
    model = load_model(section, str(tmp_path), gradient_checkpointing=False, allow_remote_code=False)
    assert model.training
    row = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(model(input_ids=row).logits, model(input_ids=row).logits)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}

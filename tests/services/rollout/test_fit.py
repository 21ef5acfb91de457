"""Weights of another model are detected by names, shapes and dtypes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

from services.contracts.transports.layout import Layout
from services.learner.model.export import whole_weights
from services.learner.publish import chunks as learner
from services.rollout.weights import shapes
from services.rollout.weights.shapes import Form, ModelForm, UnfitWeightsError, forms_of_files, forms_of_layout
from tests.services.rollout.models import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelForm:
    folder = tmp_path_factory.mktemp("model")
    make_model(0).save_pretrained(folder)
    return ModelForm(str(folder), "bfloat16")


def test_what_the_learner_publishes_fits(model: ModelForm, tmp_path: Path) -> None:
    """By layout and by files, in the run's dtype or float32, also with a tied layer under its second name."""
    weights = whole_weights(make_model(0).to(torch.bfloat16), 0)
    assert "lm_head.weight" not in weights
    model.check(1, forms_of_layout(Layout(learner.plan(weights))))
    save_file(weights | {"model.norm.weight": torch.zeros(64)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"lm_head.weight": torch.zeros(200, 64)}, tmp_path / "model-00002-of-00002.safetensors")
    forms = forms_of_files(tmp_path)
    assert forms["model.norm.weight"] == Form("float32", (64,))
    assert forms["model.embed_tokens.weight"] == Form("bfloat16", (200, 64))
    forms["model.layers.0.self_attn.rotary_emb.inv_freq"] = Form("float32", (16,))  # in files of old checkpoints
    model.check(1, forms)
    del forms["model.embed_tokens.weight"]
    model.check(1, forms)  # the output layer's name covers both


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("name", "form", "says"),
    [
        (UP, Form("bfloat16", (64, 96)), r"bfloat16 \[64, 96\], but .* has bfloat16 \[96, 64\]"),
        (UP, Form("float16", (96, 64)), r"is float16 \[96, 64\], but .* has bfloat16 \[96, 64\]"),
        (UP, None, r"is missing, but .* has bfloat16 \[96, 64\]"),
        ("model.layers.2.mlp.up_proj.weight", Form("bfloat16", (96, 64)), "has no such parameter"),
        ("model.layers.1.mlp.gate_up_proj.weight", Form("bfloat16", (192, 64)), "has no such parameter"),
    ],
)
def test_a_differing_tensor_is_named_with_a_remedy(model: ModelForm, name: str, form: Form | None, says: str) -> None:
    forms = forms_of_layout(Layout(learner.plan(whole_weights(make_model(0).to(torch.bfloat16), 0))))
    if form is None:
        del forms[name]
    else:
        forms[name] = form
    with pytest.raises(UnfitWeightsError, match=f"version 7 .*{name} .*{says}.*compare config.json"):
        model.check(7, forms)


def test_a_saved_buffer_is_published_and_compared_but_not_required(tmp_path: Path) -> None:
    """The routing bias of a mixture of experts, which vLLM needs."""
    config = Glm4MoeConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    config.save_pretrained(tmp_path)
    weights = whole_weights(Glm4MoeForCausalLM(config), 0)
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert weights[bias].shape == (4,)
    form, forms = ModelForm(str(tmp_path), "float32"), forms_of_layout(Layout(learner.plan(weights)))
    form.check(1, forms)
    form.check(1, {name: value for name, value in forms.items() if name != bias})
    with pytest.raises(UnfitWeightsError, match=rf"{bias} is float32 \[5\]"):
        form.check(1, forms | {bias: Form("float32", (5,))})


CLASSES = {"AutoConfig": "configuration.C", "AutoModelForCausalLM": "modeling.M"}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "of another kind"},
        {"model_type": "of another kind", "auto_map": CLASSES},
        {"model_type": "llava"},
        {"model_type": "qwen3", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    ],
    ids=["unknown class", "remote code", "no language model's class", "quantised"],
)
def test_a_model_of_unknown_shapes_is_not_compared(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(shapes.log, "warning", lambda event, **_: logged.append(event))
    (tmp_path / "config.json").write_text(json.dumps(config))
    form = ModelForm(str(tmp_path), "float32")
    for version in (1, 2):
        form.check(version, {"anything": Form("float32", (1,))})
    assert logged == ["weights not compared with the model"]

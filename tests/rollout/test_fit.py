"""Weights of another model are told from the run's own by names, shapes and dtypes alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.contracts.transfer import Layout
from services.learner import transfer as learner
from services.learner.weights import whole_weights
from services.rollout.fit import Form, ModelForm, UnfitWeightsError, forms_of_files, forms_of_layout
from tests.rollout.conftest import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelForm:
    folder = tmp_path_factory.mktemp("model")
    make_model(0).save_pretrained(folder)
    return ModelForm(str(folder), "bfloat16")


def test_what_the_learner_publishes_fits(model: ModelForm, tmp_path: Path) -> None:
    """By its layout and by its files, in the run's type or in float32; with a tied layer under its second name too."""
    weights = whole_weights(make_model(0).to(torch.bfloat16), 0)
    assert "lm_head.weight" not in weights
    model.check(1, forms_of_layout(Layout(learner.plan(weights))))
    save_file(weights | {"model.norm.weight": torch.zeros(64)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"lm_head.weight": torch.zeros(200, 64)}, tmp_path / "model-00002-of-00002.safetensors")
    forms = forms_of_files(tmp_path)
    assert forms["model.norm.weight"] == Form("float32", (64,))
    assert forms["model.embed_tokens.weight"] == Form("bfloat16", (200, 64))
    model.check(1, forms)
    del forms["model.embed_tokens.weight"]
    model.check(1, forms)  # the output layer's name stands for both


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("name", "form", "says"),
    [
        (UP, Form("bfloat16", (64, 96)), r"bfloat16 \[64, 96\]; .* has bfloat16 \[96, 64\]"),
        (UP, Form("float16", (96, 64)), r"float16 \[96, 64\]; .* has bfloat16 \[96, 64\]"),
        (UP, None, r"is missing; .* has bfloat16 \[96, 64\]"),
        ("model.layers.2.mlp.up_proj.weight", Form("bfloat16", (96, 64)), "has no such parameter"),
        ("model.layers.1.mlp.gate_up_proj.weight", Form("bfloat16", (192, 64)), "has no such parameter"),
    ],
)
def test_what_differs_is_named_with_a_remedy(model: ModelForm, name: str, form: Form | None, says: str) -> None:
    forms = forms_of_layout(Layout(learner.plan(whole_weights(make_model(0).to(torch.bfloat16), 0))))
    if form is None:
        del forms[name]
    else:
        forms[name] = form
    with pytest.raises(UnfitWeightsError, match=f"version 7 .*{name} .*{says}.*compare config.json"):
        model.check(7, forms)


def test_a_model_that_cannot_be_built_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "of another kind"}')
    ModelForm(str(tmp_path), "float32").check(1, {"anything": Form("float32", (1,))})

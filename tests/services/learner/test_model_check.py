"""Models that would fail later in a run are rejected at its start; settings that transformers reads can be saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from services.contracts.errors import ConfigurationError
from services.contracts.model import ModelSection
from services.contracts.run_config import RunConfig, parse_run_config
from services.learner.groups.prepare import prepare_group
from services.learner.model.check import check_run, check_teacher, table_of_positions, write_files
from services.learner.model.export import load_model
from tests.services.learner.conftest import make_group
from tests.services.learner.objectives.builders import tiny_model
from tests.services.learner.ring import POLICY, VOCABULARY


def run_of(path: Path, **rollout: Any) -> RunConfig:
    values = {"name": "r", "model": {"path": str(path)}, "data": {"train": "t"}, "training": {"steps": 1}}
    return parse_run_config(values | {"rollout": rollout})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(POLICY)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]},
        {"do_sample": False, "temperature": 0.6, "top_k": 20, "pad_token_id": None},
        {"early_stopping": True, "length_penalty": 2.0, "num_beams": 1, "pad_token_id": -1},
    ],
)
def test_generation_settings_are_saved_as_they_were_read(
    tmp_path: Path, tokenizer: Any, settings: dict[str, Any]
) -> None:
    """transformers reads settings that it refuses to save, but the checkpoint must be written."""
    source, first, second = tmp_path / "source", tmp_path / "first", tmp_path / "second"
    shutil.copytree(POLICY, source)
    (source / "generation_config.json").write_text(json.dumps(settings))
    section = ModelSection(path=str(source), dtype="float32")
    model = load_model(section, str(source), gradient_checkpointing=False, allow_remote_code=False)
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        model.generation_config.save_pretrained(tmp_path)  # type: ignore[union-attr,operator]
    check_run(model, tokenizer, run_of(source, max_prompt_tokens=64, max_response_tokens=32))
    write_files(first, model, tokenizer)
    shutil.copy(source / "model.safetensors", first)
    again = load_model(section, str(first), gradient_checkpointing=False, allow_remote_code=False)
    write_files(second, again, tokenizer)  # as after a resume
    for folder in (first, second):
        written = GenerationConfig.from_pretrained(folder)
        assert {name: getattr(written, name) for name in settings} == settings


def test_a_configuration_that_cannot_be_saved_is_rejected_before_the_first_step(tokenizer: Any) -> None:
    model = tiny_model(1, vocabulary=VOCABULARY)
    model.config.temperature = 0.6
    with pytest.raises(
        ConfigurationError, match=r"no checkpoint could be written: Some generation parameters.*config\.json"
    ):
        check_run(model, tokenizer, run_of(POLICY))


def test_a_tokenizer_larger_than_the_embedding_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"id {VOCABULARY - 1}, but .* only 29 rows.*[Rr]esize") as caught:
        check_run(tiny_model(1), tokenizer, run_of(POLICY))
    assert caught.value.field == "model.path"
    check_run(tiny_model(1, vocabulary=VOCABULARY + 50), tokenizer, run_of(POLICY))


def test_a_teacher_of_the_hub_is_checked_as_it_is_loaded(tokenizer: Any, tmp_path: Path) -> None:
    """`runs check` cannot see its files."""
    shutil.copytree(POLICY, tmp_path, dirs_exist_ok=True)
    values = run_of(POLICY).model_dump(mode="json")
    own = {"teacher_path": str(tmp_path), "teacher_update": "frozen"}
    config = parse_run_config(values | {"objective": values["objective"] | own})
    student = tiny_model(1, vocabulary=VOCABULARY)
    check_teacher(tiny_model(2, vocabulary=VOCABULARY + 50), student, tokenizer, config)
    with pytest.raises(ConfigurationError, match=rf"embedding has {VOCABULARY - 1} rows") as caught:
        check_teacher(tiny_model(2, vocabulary=VOCABULARY - 1), student, tokenizer, config)
    assert caught.value.field == "objective.teacher_path"
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"; wait, "', '"; stop, "', 1))
    with pytest.raises(ConfigurationError, match="no id for token"):
        check_teacher(student, student, tokenizer, config)


def test_a_stop_token_outside_the_vocabulary_is_refused(tokenizer: Any) -> None:
    model = tiny_model(1, vocabulary=VOCABULARY)
    check_run(model, tokenizer, run_of(POLICY, stop_token_ids=[VOCABULARY - 1]))
    with pytest.raises(ConfigurationError, match=rf"stop_token_ids has {VOCABULARY}, but .* has {VOCABULARY} tokens"):
        check_run(model, tokenizer, run_of(POLICY, stop_token_ids=[0, VOCABULARY]))


def rules_out_after_the_head(_: Any, output: Any) -> Any:
    output.logits[..., -5:] = -torch.inf
    return output


def cuts_after_the_head(_: Any, output: Any) -> Any:
    output.logits = output.logits[..., :-5]
    return output


@pytest.mark.parametrize("change", [rules_out_after_the_head, cuts_after_the_head])
def test_logits_that_are_changed_after_the_head_are_found(tokenizer: Any, change: Any) -> None:
    """In a custom model, without a setting that reveals it."""
    model = tiny_model(1, vocabulary=VOCABULARY)
    check_run(model, tokenizer, run_of(POLICY))
    model.register_forward_hook(lambda module, _, output: change(module, output))
    with pytest.raises(ConfigurationError, match="changes its logits after the LM head"):
        check_run(model, tokenizer, run_of(POLICY))


class Looked(nn.Module):
    """A custom model with a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table = tiny_model(1), nn.Embedding(128, 16)
        self.config = self.inner.config

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()


def test_tables_of_positions_are_found() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=96, n_embd=8, n_layer=1, n_head=2))
    small = {"hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 8}
    opt = OPTForCausalLM(OPTConfig(vocab_size=29, max_position_embeddings=64, **small))
    assert [table_of_positions(model) for model in (gpt2, opt, Looked(), tiny_model(1))] == [96, 64, 128, None]


def test_a_teacher_beyond_the_table_is_refused(tokenizer: Any) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=256, n_embd=8, n_layer=1, n_head=2))
    check_run(model, tokenizer, run_of(POLICY, max_prompt_tokens=64, max_response_tokens=32))
    with pytest.raises(ConfigurationError, match=r"max_response_tokens is 33 .*258 tokens.*256 positions.*Lower"):
        check_run(model, tokenizer, run_of(POLICY, max_prompt_tokens=64, max_response_tokens=33))


def test_a_rollout_whose_teacher_would_read_beyond_the_table_goes_without_one(tokenizer: Any) -> None:
    group = make_group(0, rewards=(0.0, 1.0, 0.0, 0.0))
    whole = prepare_group(group, run_of(POLICY), tokenizer)
    taught = [index for index, item in enumerate(whole.sequences) if item.teacher_prompt_ids]
    assert taught == [0, 2, 3]
    longest = max(len(item.teacher_prompt_ids or []) + len(item.response_ids) for item in whole.sequences)
    assert prepare_group(group, run_of(POLICY), tokenizer, longest).sequences == whole.sequences
    cut = prepare_group(group, run_of(POLICY), tokenizer, 8)
    assert [(item.route, item.teacher_prompt_ids) for item in cut.sequences] == [("grpo", None)] * 4
    assert not any(item.needs_teacher or item.teacher_information for item in cut.assignments)

"""Models that a run cannot train are refused as it is created, by what their folder says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from services.contracts.errors import ConfigurationError
from services.contracts.run_config import parse_run_config
from services.runtime.inputs import check_inputs
from services.runtime.settings import Settings
from tests.conftest import ROOT

POLICY = ROOT / "examples" / "embedded" / "policy"
ROWS: int = json.loads((POLICY / "config.json").read_text())["vocab_size"]
TABLE = {"model_type": "gpt2", "n_positions": 1024, "max_position_embeddings": None, "vocab_size": 50257}


def check(folder: Path, config: Any = None, tokenizer: Any = None, settings: Any = None, **sections: Any) -> None:
    """Create a run with this model; the given values are laid over the demo policy's files."""
    for name, values in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", settings)):
        own = json.loads((POLICY / f"{name}.json").read_text())
        (folder / f"{name}.json").write_text(json.dumps(own | (values or {})))
    (folder / "train.jsonl").touch()
    values = {
        "name": "r",
        "model": {"path": str(folder)},
        "data": {"train": str(folder / "train.jsonl")},
        "training": {"steps": 1},
    }
    check_inputs(parse_run_config(values | sections), Settings(home=folder, roots=str(folder)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(POLICY / "chat_template.jinja", tmp_path)
    return tmp_path


def refused(folder: Path, *words: str, field: str = "model.path", **changes: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(folder, **changes)
    assert caught.value.field == field
    assert caught.value.remedy
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer": {"added_tokens": [{"id": 1000, "content": "<pad>"}]}},
        {"settings": {"added_tokens_decoder": {"1000": {"content": "<pad>"}}}},
        {"tokenizer": {"model": {"type": "BPE", "vocab": {"a": 0, "<pad>": 1000}}}},
    ],
)
def test_a_tokenizer_larger_than_the_embedding(folder: Path, changes: dict[str, Any]) -> None:
    refused(folder, "'<pad>'", "id 1000", f"{ROWS} rows", **changes)


def test_a_list_of_tokens_larger_than_the_embedding(folder: Path) -> None:
    unigram = {"model": {"type": "Unigram", "vocab": [["t", -1.5]] * (ROWS + 1)}}
    refused(folder, f"id {ROWS}", f"{ROWS} rows", tokenizer=unigram)
    check(folder, {"vocab_size": ROWS + 1}, tokenizer=unigram)


def test_an_embedding_that_is_padded_beyond_the_tokenizer_is_taken(folder: Path) -> None:
    check(folder, {"vocab_size": 512, "pad_token_id": None, "eos_token_id": [1, 2]})


def test_a_teacher_that_reads_beyond_a_table_of_positions(folder: Path) -> None:
    lengths = {"max_prompt_tokens": 200, "max_response_tokens": 400}
    field = "rollout.max_response_tokens"
    refused(folder, "1128 tokens", "1024 positions", "self-teacher", field=field, config=TABLE, rollout=lengths)
    check(folder, TABLE, rollout=lengths, objective={"name": "grpo"})
    check(folder, TABLE, rollout={"max_prompt_tokens": 200, "max_response_tokens": 300})
    check(folder, TABLE | {"model_type": "qwen3"}, rollout=lengths)


def test_responses_beyond_a_table_of_positions(folder: Path) -> None:
    lengths = {"max_prompt_tokens": 25, "max_response_tokens": 1000}
    grpo = {"name": "grpo"}
    refused(
        folder, "1025", "1024 positions", field="rollout.max_response_tokens", config=TABLE, rollout=lengths,
        objective=grpo,
    )  # fmt: skip


def test_a_model_that_changes_its_logits_after_the_head(folder: Path) -> None:
    refused(folder, "final_logit_softcapping = 30.0", config={"final_logit_softcapping": 30.0})
    refused(folder, "logits_scaling = 8.0", config={"text_config": {"logits_scaling": 8.0}})
    check(folder, {"final_logit_softcapping": None, "logit_scale": 1.0})


HEADS = {"num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 96}


@pytest.mark.parametrize("size", [1, 2, 4, 6, 12])
def test_layers_that_gpus_can_share(folder: Path, size: int) -> None:
    """More GPUs than key-value heads each get a copy of one."""
    check(folder, HEADS, rollout={"tensor_parallel_size": size})
    check(folder, {"text_config": HEADS}, rollout={"tensor_parallel_size": size})


@pytest.mark.parametrize(
    ("size", "config", "words"),
    [
        (8, HEADS, "num_attention_heads = 12"),
        (3, HEADS, "num_key_value_heads = 2"),
        (4, HEADS | {"intermediate_size": 90}, "intermediate_size = 90"),
    ],
)
def test_layers_that_gpus_cannot_share(folder: Path, size: int, config: dict[str, int], words: str) -> None:
    field = "rollout.tensor_parallel_size"
    refused(folder, words, f"{field} is {size}", field=field, config=config, rollout={"tensor_parallel_size": size})
    refused(folder, "one of 1, 2", field=field, config=config, rollout={"tensor_parallel_size": size})


def test_a_tokenizer_without_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    refused(folder, "no chat template", "chat_template.jinja")
    check(folder, settings={"chat_template": "{{ messages[0].content }}"})


@pytest.mark.parametrize("text", ["", "[]", '{"a": ', "\udcff"])
def test_a_configuration_that_is_none(folder: Path, text: str) -> None:
    check(folder)
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    values = {"name": "r", "model": {"path": str(folder)}, "data": {"train": str(folder / "train.jsonl")}}
    with pytest.raises(ConfigurationError, match="not a JSON object"):
        check_inputs(parse_run_config(values | {"training": {"steps": 1}}), Settings(home=folder, roots=str(folder)))


def test_files_that_lead_out_of_the_roots_are_not_read(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "tokenizer.json"
    elsewhere.write_text(json.dumps({"added_tokens": [{"id": 1000, "content": "of someone else"}]}))
    check(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(elsewhere)
    values = {"name": "r", "model": {"path": str(folder)}, "data": {"train": str(folder / "train.jsonl")}}
    check_inputs(parse_run_config(values | {"training": {"steps": 1}}), Settings(home=folder, roots=str(folder)))


def test_another_model_as_the_teacher(folder: Path) -> None:
    """It may be larger and padded further, but every token must mean the same to it."""
    teacher = folder / "teacher"
    shutil.copytree(POLICY, teacher)
    tokenizer = json.loads((POLICY / "tokenizer.json").read_text())
    fixed = {"objective": {"teacher_path": str(teacher), "teacher_update": "frozen"}}
    field = "objective.teacher_path"

    def write(config: dict[str, Any], **changes: Any) -> None:
        own = json.loads((POLICY / "config.json").read_text())
        (teacher / "config.json").write_text(json.dumps(own | config))
        (teacher / "tokenizer.json").write_text(json.dumps(tokenizer | changes))

    write({"vocab_size": ROWS + 128, "hidden_size": 4096})
    check(folder, **fixed)
    write({"vocab_size": ROWS - 1})
    refused(folder, f"embedding has {ROWS - 1} rows", f"the policy's {ROWS}", field=field, **fixed)
    write({"logit_scale": 0.5})
    refused(folder, "changes its logits", field=field, **fixed)
    token, number = next(iter(tokenizer["model"]["vocab"].items()))
    other = tokenizer["model"] | {"vocab": tokenizer["model"]["vocab"] | {token: 3000}}
    write({}, model=other)
    refused(folder, f"id 3000 for token {token!r}, which has id {number}", "family", field=field, **fixed)
    fixed["objective"]["teacher_path"] = str(folder / "none")
    refused(folder, f"{field} is {folder / 'none'}, but there is no such folder", field=field, **fixed)
    fixed["objective"]["teacher_path"] = "/etc"
    refused(folder, "outside the folders", field=field, **fixed)

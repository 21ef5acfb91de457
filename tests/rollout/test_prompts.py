"""Where responses end, and what becomes of tokens that a tokenizer does not know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from services.rollout.prompts import load_tokenizer, stop_tokens
from tests.conftest import ROOT

POLICY = ROOT / "deploy" / "embedded" / "policy"


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 1}, [1, 7, 9]),
        ({"eos_token_id": 7}, {"eos_token_id": [1, 7]}, [1, 7]),
        ({}, {"eos_token_id": None}, []),
        (None, {"eos_token_id": 1, "pad_token_id": None}, [1]),
        ({"temperature": 0.6, "eos_token_id": 7, "pad_token_id": -1}, {"eos_token_id": None}, [7]),
    ],
)
def test_end_tokens_are_those_of_both_files(
    tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any], expected: list[int]
) -> None:
    own = json.loads((POLICY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(own | config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert stop_tokens(str(tmp_path), trust_remote_code=False) == expected


def test_tokens_from_the_padding_of_an_embedding_have_no_text(tmp_path: Path) -> None:
    shutil.copytree(POLICY, tmp_path, dirs_exist_ok=True)
    tokenizer = load_tokenizer(str(tmp_path), trust_remote_code=False)
    known = tokenizer("Recall each weight", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([*known, len(tokenizer) + 5]) == tokenizer.decode(known)
    assert tokenizer.decode([len(tokenizer) + 5]) == ""

"""The tokens that end responses, and tokens that the tokenizer or the model does not know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from services.contracts.errors import InfrastructureError
from services.contracts.messages import Question
from services.rollout.sampling.prompts import PromptRenderer, stop_tokens
from services.runtime.tokenizer import load_tokenizer
from tests.conftest import ROOT

POLICY = ROOT / "examples" / "embedded" / "policy"


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
def test_end_tokens_come_from_both_files(
    tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any], expected: list[int]
) -> None:
    own = json.loads((POLICY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(own | config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert stop_tokens(str(tmp_path), AutoConfig.from_pretrained(tmp_path)) == expected


def test_tokens_from_the_padding_of_an_embedding_have_no_text(tmp_path: Path) -> None:
    shutil.copytree(POLICY, tmp_path, dirs_exist_ok=True)
    tokenizer = load_tokenizer(str(tmp_path), trust_remote_code=False)
    known = tokenizer("Recall each weight", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([*known, len(tokenizer) + 5]) == tokenizer.decode(known)
    assert tokenizer.decode([len(tokenizer) + 5]) == ""


class Larger:
    """A tokenizer with more tokens than the model: tokens were added without resizing the embedding."""

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> list[int]:
        return [ord(letter) for letter in messages[-1]["content"]]


def test_a_token_that_the_model_lacks_is_a_fault_of_its_prompt_only() -> None:
    renderer = PromptRenderer(Larger(), vocabulary_size=ord("c"))
    assert renderer.render(Question(id="q1", kind="mcq", prompt="abba"), 8) == [97, 98, 98, 97]
    for _ in range(2):  # cached prompts are checked too
        with pytest.raises(InfrastructureError, match="q2 contains token 99, but the model's vocabulary has only 99"):
            renderer.render(Question(id="q2", kind="mcq", prompt="abc"), 8)


THINKING = """
{%- for message in messages %}{{ message['content'] }}{% endfor -%}
{% if enable_thinking %} weight{% elif enable_thinking is false %} each weight{% endif %}"""


def test_the_template_gets_the_runs_arguments(tmp_path: Path) -> None:
    shutil.copytree(POLICY, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(THINKING)
    tokenizer = load_tokenizer(str(tmp_path), trust_remote_code=False)

    def rendered(*arguments: dict[str, Any]) -> list[int]:
        return PromptRenderer(tokenizer, 10**6, *arguments).render(Question(id="q", kind="mcq", prompt="Recall"), 99)

    thinking, off, neither = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("Recall weight", "Recall each weight", "Recall")
    )
    assert rendered() == rendered({"enable_thinking": False}) == off
    assert rendered({"enable_thinking": True}) == thinking
    assert rendered({"enable_thinking": None}) == neither

    both = PromptRenderer(tokenizer, 10**6, {"enable_thinking": True}, {"enable_thinking": False})
    question = Question(id="q", kind="mcq", prompt="Recall")
    assert [both.render(question, 99, is_teacher=teacher) for teacher in (False, True, False)] == [
        thinking,
        off,
        thinking,
    ]

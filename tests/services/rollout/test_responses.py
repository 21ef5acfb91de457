"""The text of a response, for real tokenizers whose tags are special tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from services.contracts.arrays import TokenIds
from services.contracts.model import ThinkingSection
from services.contracts.run_config import parse_run_config
from services.learner.groups.prepare import prepare_group
from services.learner.update.layout import lay_out
from services.rollout.sampling import sampling
from services.rollout.sampling.prompts import PromptRenderer
from services.rollout.sampling.responses import ResponseDecoder
from services.verifier.rewards.mcq import judge_mcq
from tests.services.learner.conftest import make_group
from tests.services.learner.ring import POLICY
from tests.services.rollout.models import TEMPLATE, make_tokenizer
from tests.services.verifier.builders import question

TAGS = ["<answer>", "</answer>", "<think>", "</think>"]


def with_special(*texts: str, template: str = "") -> PreTrainedTokenizerFast:
    """A word tokenizer with `texts` as additional special tokens."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(texts)})
    tokenizer.chat_template = template
    return tokenizer


def decoded(tokenizer: Any, *words: str, stops: tuple[str, ...] = ()) -> str:
    ids = tokenizer.convert_tokens_to_ids(list(words))
    assert tokenizer.unk_token_id not in ids
    text = ResponseDecoder(tokenizer, tokenizer.convert_tokens_to_ids(list(stops))).text(ids)
    return " ".join(text.split())


def test_tags_that_are_special_tokens_stay() -> None:
    tokenizer = with_special(*TAGS)
    words = ("<think>", "w1", "</think>", "<answer>", "w2", "</answer>", "<end>", "<pad>")
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(list(words)), skip_special_tokens=True) == "w1 w2"
    assert decoded(tokenizer, *words) == "<think> w1 </think> <answer> w2 </answer>"


def test_tags_stay_where_the_chat_template_writes_them() -> None:
    template = "{% if add_generation_prompt %}<|start|>assistant<think></think>{% endif %}<|stop|>"
    tokenizer = with_special(*TAGS, "<|start|>", "<|stop|>", "<|call|>", template=template)
    words = ("<think>", "w1", "</think>", "<|call|>", "w2", "<|stop|>", "<|start|>", "w3")
    assert decoded(tokenizer, *words) == "<think> w1 </think> <|call|> w2 w3"


class Server:
    """Always generates the same response."""

    def __init__(self, token_ids: list[int]) -> None:
        span = SimpleNamespace(version="0", start=0, end=len(token_ids))
        logprobs = SimpleNamespace(logprobs=[-1.0] * len(token_ids))
        self.output = SimpleNamespace(
            token_ids=token_ids, logprobs=logprobs, weight_versions=[span], finish_reason="stop", stop_reason=None
        )

    async def generate(self, prompt: list[int], params: object) -> list[SimpleNamespace]:
        return [self.output] * 4


async def test_a_reward_finds_tags_that_are_special_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "sampling_params", lambda *_: None)  # vLLM's
    tokenizer = with_special(*TAGS, template=TEMPLATE)
    tokenizer.add_tokens(["B"])
    ids = tokenizer.convert_tokens_to_ids(["<think>", "w1", "</think>", "<answer>", "B", "</answer>", "<end>"])
    server: Any = Server(ids)
    sampler = sampling.GroupSampler(server, PromptRenderer(tokenizer, len(tokenizer)), [tokenizer.eos_token_id])
    task = make_group(0).group.task
    _, rollouts = await sampler.sample(task)
    assert [judge_mcq(question("mcq", "B"), rollout.text, False).correct for rollout in rollouts] == [True] * 4
    assert all(rollout.token_ids.tolist() == ids for rollout in rollouts)


@pytest.mark.parametrize(("last", "text"), [("<|over|>", "w1"), ("w9", "w1"), ("</answer>", "w1 </answer>")])
def test_the_token_that_ends_a_response_is_left_out_unless_it_is_a_tag(last: str, text: str) -> None:
    tokenizer = with_special(*TAGS, "<|over|>")
    assert decoded(tokenizer, "w1", last, stops=("<|over|>", "w9", "</answer>")) == text


def test_tokens_that_begin_and_end_sequences_are_not_tags() -> None:
    tokenizer = with_special("<s>", "</s>")
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    assert decoded(tokenizer, "<s>", "w1", "</s>") == "w1"


def test_a_model_without_such_tags_is_decoded_as_usual() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    ids = [*tokenizer("<reasoning>coal=21</reasoning><answer>21</answer>")["input_ids"], tokenizer.eos_token_id]
    found = ResponseDecoder(tokenizer, [tokenizer.eos_token_id]).text(ids)
    assert found == tokenizer.decode(ids[:-1], skip_special_tokens=True)
    assert found.endswith("<answer>21</answer>")


@pytest.mark.parametrize(
    ("text", "reason", "read"),
    [
        ("a</answer>\n", "</answer>", "a</answer>"),
        ("a. b. c", ". ", "a. "),
        ("a</answer>", 7, "a</answer>"),
        ("a", None, "a"),
        ("a", "<|control|>", "a"),
    ],
)
def test_rewards_read_up_to_and_including_the_stop_string(text: str, reason: str | int | None, read: str) -> None:
    assert sampling.through(text, reason) == read


@pytest.mark.parametrize(
    ("template", "words", "expected"),
    [
        (TEMPLATE, ["<think>", "w1", "w2", "</think>", "w3"], (4, True, "w3")),
        (TEMPLATE, ["w1", "w2"], (0, True, "w1 w2")),
        (TEMPLATE, ["<think>", "w1", "w2"], (3, False, None)),
        (TEMPLATE + "<think>", ["w1", "w2", "</think>", "w3"], (3, True, "w3")),
        (TEMPLATE + "<think>", ["w1", "w2", "w3"], (3, False, None)),
        (TEMPLATE + "<think> </think>", ["w1", "w2", "w3"], (0, True, "w1 w2 w3")),
        (TEMPLATE + "<think>", ["w1", "</think>", "w2", "</think>", "w3"], (4, True, "w3")),
    ],
)
async def test_thinking_is_told_from_the_answer_and_counted(
    template: str, words: list[str], expected: tuple[int, bool, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the template has opened is part of the prompt: never a response's token, and so never trained on."""
    monkeypatch.setattr(sampling, "sampling_params", lambda *_: None)
    tokenizer = with_special(*TAGS, template=template)
    ids = tokenizer.convert_tokens_to_ids([*words, "<end>"])
    server: Any = Server(ids)
    sampler = sampling.GroupSampler(
        server, PromptRenderer(tokenizer, 10**6), [tokenizer.eos_token_id], (), ThinkingSection()
    )
    scored = make_group(0, rewards=(0.0, 1.0, 0.0, 0.0))
    prompt, rollouts = await sampler.sample(scored.group.task)
    assert ("<think>" in tokenizer.convert_ids_to_tokens(prompt)) == ("<think>" in template)
    group = msgspec.structs.replace(scored.group, prompt_token_ids=TokenIds(prompt), rollouts=rollouts)
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    prepared = prepare_group(msgspec.structs.replace(scored, group=group), parse_run_config(values), tokenizer)
    layout = lay_out(prepared.sequences, None, torch.device("cpu"), torch.float32)
    assert layout.targets.tolist() == ids * len(layout.rows)
    assert [sequence.prompt_ids for sequence in prepared.sequences] == [prompt] * 4
    for rollout in rollouts:
        thinking = rollout.thinking
        assert thinking is not msgspec.UNSET
        number = thinking.num_tokens if thinking.closed else thinking.num_tokens - 1  # the end token is a thought, too
        assert (number, thinking.closed, rollout.answer) == expected


def test_markers_of_the_run_stay_in_the_text_though_they_are_special_tokens() -> None:
    tokenizer = with_special("[THINK]", "[/THINK]", template="[THINK][/THINK]")
    ids = tokenizer.convert_tokens_to_ids(["[THINK]", "w1", "[/THINK]", "w2"])
    assert ResponseDecoder(tokenizer, []).text(ids).split() == ["w1", "w2"]
    kept = ResponseDecoder(tokenizer, [], ("[THINK]", "[/THINK]")).text(ids)
    assert kept.split() == ["[THINK]", "w1", "[/THINK]", "w2"]

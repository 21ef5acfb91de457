"""The committed policy loads, is as small and knows as little as its page says, and matches its record."""

import json
from pathlib import Path

import pytest
import torch

from examples.embedded import benchmark, measure, vocabulary, warm_start

POLICY = warm_start.POLICY


@pytest.fixture(scope="module")
def examinee() -> measure.Examinee:
    return measure.Examinee(POLICY)


def test_the_record_holds() -> None:
    assert warm_start.check(POLICY) == []


def test_other_weights_break_the_record(tmp_path: Path) -> None:
    weights = bytearray((POLICY / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    recorded = json.loads((POLICY / "provenance.json").read_text())["weights_sha256"]
    assert warm_start.digest(POLICY) == recorded
    assert warm_start.digest(tmp_path) != recorded


def test_the_policy_is_small_and_in_full_precision(examinee: measure.Examinee) -> None:
    model = examinee.model
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 150_000 <= num_parameters <= 300_000
    assert num_parameters == json.loads((POLICY / "provenance.json").read_text())["parameters"]
    assert model.config.tie_word_embeddings
    assert model.config.head_dim in (32, 64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(path.stat().st_size for path in POLICY.iterdir()) < 5_000_000


def test_the_committed_tokenizer_is_the_one_that_the_code_builds(examinee: measure.Examinee) -> None:
    committed, built = examinee.tokenizer, vocabulary.build_tokenizer()
    assert committed.get_vocab() == built.get_vocab()
    assert committed.chat_template == built.chat_template
    assert committed.pad_token_id == examinee.model.config.pad_token_id
    assert committed.eos_token_id == examinee.model.config.eos_token_id
    assert committed.eos_token_id == examinee.model.generation_config.eos_token_id
    content = vocabulary.teacher_content("Total tonnes of coal?", "<answer>24</answer>", "coal should be 24")
    text = vocabulary.render(content)
    assert committed.encode(text) == built.encode(text)
    assert committed.decode(committed.encode(text)) == text


def test_the_base_knows_some_but_not_all(examinee: measure.Examinee) -> None:
    figures = measure.plain(examinee, benchmark.questions("validation")[:128])
    assert 0.10 <= figures["accuracy_at_0.6"] <= 0.45
    assert 0.08 <= figures["accuracy_at_1.0"] <= 0.45
    assert figures["mixed"] > 0.3


def test_a_right_solution_in_the_prompt_teaches(examinee: measure.Examinee) -> None:
    asked = benchmark.questions("validation")
    figures = measure.taught(examinee, asked)
    assert figures["taught_by_solution"] > 0.3
    assert figures["with_a_solution"]["with_second_thoughts"] < 0.05


def test_responses_differ_in_length(examinee: measure.Examinee) -> None:
    habits = measure.plain(examinee, benchmark.questions("validation")[:32])["alone"]
    assert 20 < habits["tokens"] < 40
    assert 0.3 < habits["with_second_thoughts"] < 0.8
    assert 0.5 < habits["with_sums"] < 0.95

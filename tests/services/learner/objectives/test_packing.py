"""Micro-batches are complete, within budget and nearly free of padding; padded rows compute what single rows do."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.learner.model.forward import chunk_slices
from services.learner.packing.rows import pad_rows, plan_rows, row_length
from tests.services.learner.objectives.builders import tiny_model


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 2000))
def test_every_row_once_and_within_budget(lengths: list[int], budget: int) -> None:
    batches = plan_rows(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize(("least", "most", "budget"), [(28, 64, 16384), (100, 900, 16384), (200, 8000, 16384)])
def test_nine_tenths_of_the_computed_tokens_are_needed(least: int, most: int, budget: int) -> None:
    rng = random.Random(0)
    lengths = [rng.randint(least, most) for _ in range(64)]
    batches = plan_rows(lengths, budget)
    computed = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert sum(lengths) / computed >= 0.9


def test_padded_rows_compute_what_single_rows_compute() -> None:
    model = tiny_model(4)
    prompts, responses = [[1, 2, 3], [4], [5, 6]], [[7, 8], [9], [1, 2, 3, 4, 5]]
    offsets = [0, 2, 3]
    with torch.no_grad():
        batch = pad_rows(prompts, responses, offsets, torch.device("cpu"))
        logits = model(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.positions]
        assert batch.tokens.tolist() == list(range(8))
        for prompt, response, offset in zip(prompts, responses, offsets, strict=True):
            alone = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            assert torch.allclose(logits[offset : offset + len(response)], alone, atol=1e-5)
    assert batch.input_ids.shape == (3, max(map(row_length, prompts, responses)))


@given(st.integers(0, 50), st.integers(0, 3000), st.integers(1, 2**20))
def test_chunks_cover_a_range(start: int, count: int, vocabulary: int) -> None:
    chunks = chunk_slices(start, start + count, vocabulary)
    assert [i for chunk in chunks for i in range(chunk.start, chunk.stop)] == list(range(start, start + count))
    assert all(chunk.stop - chunk.start <= max(1, 2**25 // vocabulary) for chunk in chunks)

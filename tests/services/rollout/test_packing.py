"""Weights in fast transports: packed into chunks with digests, and unpacked again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.contracts.errors import MalformedMessageError
from services.contracts.transports.layout import ITEM_BYTES, Chunk, Layout, PackedTensor
from services.learner.publish import chunks as learner
from services.rollout.weights.receive import chunks as rollout
from services.runtime.weights import digest as digests
from services.runtime.weights.digest import digest


def weights_of(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"a.weight": (7, 5), "a.bias": (3,), "b.weight": (40, 9), "scale": (), "c.weight": (2, 3, 4)}
    return {
        name: torch.randn(size, generator=generator).to(torch.bfloat16 if "b" in name else torch.float32)
        for name, size in sizes.items()
    }


def assert_same(received: Iterator[tuple[str, Tensor]], weights: Mapping[str, Tensor]) -> None:
    found = dict(received)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


shapes = st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(shapes, st.lists(st.sampled_from(sorted(ITEM_BYTES)), min_size=8, max_size=8), st.integers(1, 400))
def test_every_tensor_survives_packing(sizes: list[list[int]], dtypes: list[str], chunk_bytes: int) -> None:
    weights = {f"w{i}": torch.randn(size).to(getattr(torch, dtypes[i])) for i, size in enumerate(sizes)}
    chunks, filled = [], []
    for chunk in learner.plan(weights, chunk_bytes):
        buffer = torch.empty(chunk.bytes, dtype=torch.uint8)
        learner.fill(buffer, chunk, weights)
        chunks.append(learner.with_digest(chunk, buffer))
        filled.append(buffer)
        assert chunk.bytes <= chunk_bytes + 16 * len(chunk.tensors) or len(chunk.tensors) == 1
    layout = Layout(chunks)
    assert_same(rollout.unpacked(layout, rollout.verified(iter(filled), layout, stays=True)), weights)


def test_the_digest_detects_any_changed_byte_and_any_other_order(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.randint(0, 256, (256,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = digest(data.view(torch.int64))
    for place in range(256):
        for bit in (1, 128):
            changed = data.clone()
            changed[place] ^= bit
            assert digest(changed.view(torch.int64)) != whole
    words = data.view(torch.int64)
    for first in range(32):
        for second in range(first):
            order = list(range(32))
            order[first], order[second] = second, first
            assert digest(words[order]) != whole
    assert digest(torch.zeros(8, dtype=torch.int64)) != digest(torch.zeros(9, dtype=torch.int64))
    monkeypatch.setattr(digests, "_PIECE", 5)
    assert digest(words) == whole


def test_digest_is_the_published_form() -> None:
    """Learner and servers may run different builds, so the numbers, computed with integers, are part of the format."""

    def plain(words: list[int]) -> str:
        mask, total = (1 << 64) - 1, 0
        for place, word in enumerate(words, start=1):
            mixed = (word + place * 0x9E3779B97F4A7C15) & mask
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
            total += mixed ^ (mixed >> 31)
        return f"{total & mask:016x}"

    words = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    assert digest(torch.tensor(words)) == plain(words)


def test_chunks_are_released_while_they_are_consumed() -> None:
    weights = weights_of(1)
    chunks, filled = [], []
    for chunk in learner.plan(weights, 100):
        buffer = torch.empty(chunk.bytes, dtype=torch.uint8)
        learner.fill(buffer, chunk, weights)
        chunks.append(chunk)
        filled.append(buffer)
    del buffer
    held = [weakref.ref(data) for data in filled]
    assert len(held) > 2
    received = rollout.unpacked(Layout(chunks), filled)
    for number, chunk in enumerate(chunks):
        for _ in chunk.tensors:
            next(received)
        assert [ref() is None for ref in held].count(True) == number
    assert next(received, None) is None
    assert [ref() for ref in held] == [None] * len(held)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(32, "", [PackedTensor("a", "float32", [4], 0), PackedTensor("b", "float32", [4], 0)]),
        Chunk(32, "", [PackedTensor("a", "float32", [9], 0)]),
        Chunk(32, "", [PackedTensor("a", "float32", [1], 4)]),
        Chunk(32, "", [PackedTensor("a", "int8", [4], 0)]),
        Chunk(33, "", []),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(chunk: Chunk) -> None:
    with pytest.raises(MalformedMessageError):
        Layout([chunk]).check()

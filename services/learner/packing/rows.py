"""Turns sequences into micro-batches: which sequences share a forward pass, and the tensors of that pass.

A row is prompt and response without the last response token, from which nothing is predicted. There are two layouts;
`tree_attention.share_prefixes` decides which one a model gets:

- the nodes of the rows' prefix tree as one row without padding (`prefix_tree`);
- in this module: rows sorted by length, cut to minimize padding, and padded on the right. With causal attention a token
  never attends to its right, so no mask is needed and positions are 0, 1, 2, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PASS_OVERHEAD_TOKENS = 64
"""Fixed cost of one more forward and backward pass, in tokens; prevents too many cuts."""


def plan_rows(lengths: Sequence[int], budget: int | None, overhead: int = PASS_OVERHEAD_TOKENS) -> list[list[int]]:
    """Cut rows into batches of at most `budget` padded tokens, without a limit if it is None.

    Minimizes padded tokens plus `overhead` per batch over all cuts of the rows sorted by length (exact, by dynamic
    programming; O(n^2) in numpy). A row longer than the budget gets its own batch.

    Args:
        lengths: row lengths, each >= 1.
        overhead: fixed cost of a batch, in tokens.

    Returns:
        Batches as lists of indices into `lengths`, each index once; longest rows first, so that a lack of memory shows
        immediately.
    """
    if not lengths:
        return []
    order = np.argsort(np.asarray(lengths), kind="stable")
    ordered = np.asarray(lengths)[order]
    num_rows = len(order)
    best = np.zeros(num_rows + 1)
    cut = np.zeros(num_rows + 1, dtype=np.int64)
    for end in range(1, num_rows + 1):
        longest = int(ordered[end - 1])
        first = 0 if budget is None else max(0, end - max(1, budget // longest))
        starts = np.arange(first, end)
        cost = best[first:end] + (end - starts) * longest + overhead
        cut[end] = first + int(cost.argmin())
        best[end] = cost[cut[end] - first]
    batches: list[list[int]] = []
    end = num_rows
    while end > 0:
        batches.append([int(index) for index in order[cut[end] : end]])
        end = int(cut[end])
    return batches


@dataclass(frozen=True, slots=True)
class Paths:
    """How attention finds the rows of a prefix tree among the N tokens that the model gets."""

    buckets: list[Tensor]
    """Token numbers, [rows, longest] each, int64: rows of similar length that attention reads together. Entries past a
    row's end are arbitrary."""
    back: Tensor
    """[N], int64: index of each token in the concatenated positions of all buckets."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One forward pass. n is the number of response tokens in it."""

    input_ids: Tensor
    """[rows, longest], int64, right-padded with 0; [1, N] for a prefix tree."""
    positions: Tensor
    """[n], int64: index, into the flattened [rows * longest] positions, from which each response token is predicted."""
    tokens: Tensor
    """[n], int64: index of each token in the layout of all response tokens (`offsets`)."""
    places: NDArray[np.int64]
    """`tokens` in CPU memory."""
    position_ids: Tensor | None = None
    """[1, N], int64: position of each token in its rows, for a prefix tree."""
    paths: Paths | None = None


def row_length(prompt: Sequence[int], response: Sequence[int]) -> int:
    """Number of tokens in the forward pass of one sequence: all but the last."""
    return len(prompt) + len(response) - 1


def pad_rows(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    offsets: Sequence[int],
    device: torch.device,
) -> PackedBatch:
    """Lay sequences out as one padded batch.

    Args:
        prompts, responses: token ids, one entry per row, each with at least one token.
        offsets: index of each response's first token in the layout of all response tokens.
    """
    longest = max(row_length(prompt, response) for prompt, response in zip(prompts, responses, strict=True))
    ids = np.zeros((len(prompts), longest), dtype=np.int64)
    for row, prompt, response in zip(ids, prompts, responses, strict=True):
        row[: len(prompt)] = prompt
        row[len(prompt) : row_length(prompt, response)] = response[:-1]
    positions = [
        row * longest + len(prompt) - 1 + np.arange(len(response))
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    places = token_places(responses, offsets)
    return PackedBatch(
        input_ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        tokens=torch.from_numpy(places).to(device),
        places=places,
    )


def token_places(responses: Sequence[Sequence[int]], offsets: Sequence[int]) -> NDArray[np.int64]:
    """`PackedBatch.places` of whole responses."""
    places = [offset + np.arange(len(response)) for response, offset in zip(responses, offsets, strict=True)]
    return np.concatenate(places)


def dummy_batch(device: torch.device) -> PackedBatch:
    """A batch of one token without a response, for ranks that must join a pass but have no sequence left."""
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    ids = torch.zeros((1, 1), dtype=torch.int64, device=device)
    return PackedBatch(ids, empty, empty, np.zeros(0, dtype=np.int64))

"""How sequences become micro-batches: what one forward pass gets, and which sequences go through it together.

A row is prompt and response without the last response token: nothing is predicted from it. There are two layouts;
`tree_attention.share_prefixes` decides which one a model gets:

- the nodes of the rows' prefix tree as one row without padding (`prefix_tree`);
- here: rows sorted by length, cut where padding would cost most, padded on the right. With causal attention a real
  token never looks to its right, so there is no mask and positions are 0, 1, 2, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PASS_OVERHEAD_TOKENS = 64
"""What one more forward and backward pass costs besides its tokens, in tokens: keeps cuts from becoming too many."""


def plan_rows(lengths: Sequence[int], budget: int | None, overhead: int = PASS_OVERHEAD_TOKENS) -> list[list[int]]:
    """Cut rows into batches of at most `budget` padded tokens; None for any number.

    Minimises padded tokens plus `overhead` a batch over all cuts of the rows sorted by length (exact, by dynamic
    programming; O(n^2) in numpy). A row longer than the budget goes alone.

    Args:
        lengths: row lengths, each >= 1.
        overhead: what one more batch costs besides its tokens, in tokens.

    Returns:
        Batches as lists of indices into `lengths`, each index once; longest rows first, so that a lack of memory shows
        at once.
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
    """[rows, longest] token numbers each, int64: rows of nearly equal length that attention reads together; past a
    row's end any number."""
    back: Tensor
    """[N], int64: where each token is among the positions of all buckets laid end to end."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One forward pass. n is the number of response tokens in it."""

    input_ids: Tensor
    """[rows, longest], int64, right-padded with 0; [1, N] for a prefix tree."""
    positions: Tensor
    """[n], int64: index into the flattened [rows * longest] places from which each response token is predicted."""
    tokens: Tensor
    """[n], int64: each token's place in the layout of all response tokens (`offsets`)."""
    position_ids: Tensor | None = None
    """[1, N], int64: place of each token in its rows, for a prefix tree."""
    paths: Paths | None = None


def row_length(prompt: Sequence[int], response: Sequence[int]) -> int:
    """Tokens that the forward pass needs for one sequence: all but the last."""
    return len(prompt) + len(response) - 1


def pad_rows(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    offsets: Sequence[int],
    device: torch.device,
) -> PackedBatch:
    """Lay sequences out as one padded batch.

    Args:
        prompts, responses: token ids, one entry a row; prompts and responses have at least one token.
        offsets: place of each response's first token in the layout of all response tokens.
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
    return PackedBatch(
        input_ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        tokens=token_places(responses, offsets, device),
    )


def token_places(responses: Sequence[Sequence[int]], offsets: Sequence[int], device: torch.device) -> Tensor:
    """`PackedBatch.tokens` of whole responses."""
    places = [offset + np.arange(len(response)) for response, offset in zip(responses, offsets, strict=True)]
    return torch.from_numpy(np.concatenate(places)).to(device)


def dummy_batch(device: torch.device) -> PackedBatch:
    """One token and no response, for ranks that must run a pass but have no sequence left."""
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    return PackedBatch(torch.zeros((1, 1), dtype=torch.int64, device=device), empty, empty)

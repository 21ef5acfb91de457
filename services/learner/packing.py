"""How sequences become micro-batches: sorted by length, cut where padding would cost most, padded on the right.

With causal attention a real token never looks at what stands to its right, so right-padded rows need no attention mask
and keep positions 0, 1, 2, ... : each row computes what it would compute alone, and attention kernels run their
fast causal path on CPU and GPU. (Packing several sequences into one row would need a block mask or a kernel for
variable lengths; rows of nearly equal length waste little more.)

A row is prompt and response without the last response token: nothing is predicted from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PASS_OVERHEAD_TOKENS = 64
"""What one more forward and backward pass costs besides its tokens, in tokens: keeps cuts from becoming too many."""


def plan_microbatches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut sequences into micro-batches of at most `budget` padded tokens.

    Minimises padded tokens plus `PASS_OVERHEAD_TOKENS` a micro-batch over all cuts of the sequences sorted by length
    (exact, by dynamic programming; O(n^2) in numpy). A sequence longer than the budget goes alone.

    Args:
        lengths: row lengths, each >= 1.

    Returns:
        Micro-batches as lists of indices into `lengths`, each index once; longest rows first, so that a lack of
        memory shows at once.
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
        first = max(0, end - max(1, budget // longest))
        starts = np.arange(first, end)
        cost = best[first:end] + (end - starts) * longest + PASS_OVERHEAD_TOKENS
        cut[end] = first + int(cost.argmin())
        best[end] = cost[cut[end] - first]
    batches: list[list[int]] = []
    end = num_rows
    while end > 0:
        batches.append([int(index) for index in order[cut[end] : end]])
        end = int(cut[end])
    return batches


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows of one forward pass. n is the number of response tokens in it."""

    input_ids: Tensor
    """[rows, longest], int64, right-padded with 0."""
    positions: Tensor
    """[n], int64: index into the flattened [rows * longest] positions from which each response token is predicted."""
    tokens: Tensor
    """[n], int64: each token's place in the layout of all response tokens (`offsets`)."""


def row_length(prompt: Sequence[int], response: Sequence[int]) -> int:
    """Tokens that the forward pass needs for one sequence: all but the last."""
    return len(prompt) + len(response) - 1


def pad_rows(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    offsets: Sequence[int],
    device: torch.device,
) -> PaddedBatch:
    """Lay sequences out as one padded batch.

    Args:
        prompts, responses: token ids, one entry a row; prompts and responses have at least one token.
        offsets: place of each response's first token in the layout of all response tokens.
    """
    longest = max(row_length(prompt, response) for prompt, response in zip(prompts, responses, strict=True))
    ids = np.zeros((len(prompts), longest), dtype=np.int64)
    positions: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    tokens: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    for row, (prompt, response, offset) in enumerate(zip(prompts, responses, offsets, strict=True)):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : row_length(prompt, response)] = response[:-1]
        steps = np.arange(len(response), dtype=np.int64)
        positions.append(steps + (row * longest + len(prompt) - 1))
        tokens.append(steps + offset)
    return PaddedBatch(
        input_ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        tokens=torch.from_numpy(np.concatenate(tokens)).to(device),
    )


def dummy_rows(device: torch.device) -> PaddedBatch:
    """A batch of one token and no response, for ranks that must run a pass but have no sequence left."""
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    return PaddedBatch(torch.zeros((1, 1), dtype=torch.int64, device=device), empty, empty)

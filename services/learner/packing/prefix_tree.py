"""Computes common prefixes of sequences once, by representing rows of tokens as a prefix tree.

In a causal model, a token's computation depends only on the tokens before it. Rows with a common prefix (rollouts of a
group share their prompt, teacher prompts a question and demonstration, some responses their first words) therefore need
each common token once, and its gradients add up. In sorted order, the prefix that a row shares with its predecessor is
the longest that it shares with any earlier row, so one number per row describes the tree. The model gets the tree's
nodes as one row; attention reads whole rows along their paths through the tree (`tree_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.learner.packing.rows import PASS_OVERHEAD_TOKENS, PackedBatch, Paths, plan_rows, token_places

Array = NDArray[Any]
BUCKET_OVERHEAD_TOKENS = 256
"""Cost of one more call of the attention kernel, in padded tokens of attention."""
ATTENDED_PER_NODE = 2
"""Attention works on whole rows: their tokens in a micro-batch may be at most this many times the token budget."""


@dataclass(frozen=True, slots=True)
class Tree:
    """n rows in sorted order, right-padded to the longest."""

    ids: Array
    """Tokens, [n, longest], int64; 0 as padding."""
    lengths: Array
    """[n]"""
    shared: Array
    """Length of the prefix that each row shares with the row before it, [n]; 0 for the first."""
    order: list[int]
    """Index of each row before sorting."""

    @property
    def num_nodes(self) -> int:
        """Number of tokens that a model computes for all rows."""
        return int((self.lengths - self.shared).sum())


def grow(rows: Sequence[Sequence[int]]) -> Tree:
    """Build the tree of at least one row of token ids, each with at least one token."""
    lengths = np.asarray([len(row) for row in rows])
    ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    keys = ids.astype(">u4")  # big-endian bytes sort as the numbers do
    order = sorted(range(len(rows)), key=lambda index: (keys[index].tobytes(), len(rows[index])))
    ids, lengths = ids[order], lengths[order]
    differs = ids[1:] != ids[:-1]
    common = np.where(differs.any(1), differs.argmax(1), ids.shape[1])
    shared = np.concatenate([[0], np.minimum(common, np.minimum(lengths[1:], lengths[:-1]))])
    return Tree(ids, lengths, shared, order)


def plan_trees(tree: Tree, budget: int) -> list[list[int]]:
    """Cut the rows of a tree into micro-batches of at most `budget` nodes.

    Minimizes the number of nodes (a prefix across a cut is computed on both sides) plus `PASS_OVERHEAD_TOKENS` per
    micro-batch over all cuts, exactly, by dynamic programming. A row longer than the budget gets its own micro-batch.

    Returns:
        Micro-batches as lists of indices before sorting, most nodes first, so that a lack of memory shows immediately.
    """
    if tree.num_nodes <= budget and tree.lengths.sum() <= ATTENDED_PER_NODE * budget:
        return [tree.order]
    num_rows = len(tree.lengths)
    nodes = np.concatenate([[0], np.cumsum(tree.lengths - tree.shared)])
    attended = np.concatenate([[0], np.cumsum(tree.lengths)])
    best = np.zeros(num_rows + 1)
    cut = np.zeros(num_rows + 1, dtype=np.int64)
    for end in range(1, num_rows + 1):
        size = nodes[end] - nodes[:end] + tree.shared[:end]
        fits = (size <= budget) & (attended[end] - attended[:end] <= ATTENDED_PER_NODE * budget)
        fits[-1] = True
        cost = np.where(fits, best[:end] + size + PASS_OVERHEAD_TOKENS, np.inf)
        cut[end] = cost.argmin()
        best[end] = cost[cut[end]]
    batches: list[tuple[int, list[int]]] = []
    end = num_rows
    while end > 0:
        start = int(cut[end])
        batches.append((int(nodes[end] - nodes[start] + tree.shared[start]), tree.order[start:end]))
        end = start
    return [batch for _, batch in sorted(batches, key=lambda pair: -pair[0])]


def pack_tree(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    offsets: Sequence[int],
    device: torch.device,
) -> PackedBatch:
    """Lay sequences out as one tree; arguments as `packing.pad_rows`."""
    rows = [[*prompt, *response[:-1]] for prompt, response in zip(prompts, responses, strict=True)]
    tree = grow(rows)
    column = np.arange(tree.ids.shape[1])
    is_own = (column >= tree.shared[:, None]) & (column < tree.lengths[:, None])
    numbers = np.cumsum(is_own).reshape(is_own.shape) - 1
    # Nodes are numbered row by row, so the largest number above belongs to the last row that branched off there.
    nodes = np.maximum.accumulate(np.where(is_own, numbers, 0), axis=0)
    place = np.argsort(tree.order)
    positions = [
        nodes[place[index], len(prompt) - 1 : len(row)]
        for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
    ]
    places = token_places(responses, offsets)
    return PackedBatch(
        input_ids=torch.from_numpy(tree.ids[is_own][None]).to(device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        tokens=torch.from_numpy(places).to(device),
        places=places,
        position_ids=torch.from_numpy(np.nonzero(is_own)[1][None]).to(device),
        paths=_paths(tree, nodes, device),
    )


def _paths(tree: Tree, nodes: Array, device: torch.device) -> Paths:
    """Attention's rows: those that are not a prefix of another row, which together contain every node.

    Args:
        nodes: node numbers by row, [n, longest].
    """
    whole = np.flatnonzero(np.append(tree.shared[1:] < tree.lengths[:-1], True))
    back = np.zeros(tree.num_nodes, dtype=np.int64)
    buckets, start = [], 0
    for members in plan_rows(tree.lengths[whole].tolist(), None, BUCKET_OVERHEAD_TOKENS):
        lengths = tree.lengths[whole[members]]
        bucket = nodes[whole[members], : lengths.max()]
        is_real = np.arange(bucket.shape[1]) < lengths[:, None]
        back[bucket[is_real]] = start + np.flatnonzero(is_real)
        start += bucket.size
        buckets.append(torch.from_numpy(bucket).to(device))
    return Paths(buckets, torch.from_numpy(back).to(device))

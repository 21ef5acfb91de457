"""AdamW for a CPU, in pieces that fit the processor's cache."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

PIECE: Final = 2**18
"""Elements; a power of 2, so that the processor's vectors begin where they would in the whole tensor."""


class PiecewiseAdamW(torch.optim.AdamW):
    """torch's AdamW, with the same results to the last bit.

    DeepSpeed's ZeRO makes all parameters one flat tensor. torch passes over it ten times, and takes two temporary
    tensors of its size from the kernel at each update.
    """

    def _init_group(  # type: ignore[no-untyped-def]
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        maxima: list[Tensor],
        steps: list[Tensor],
    ):
        """Fill the lists as torch does, which passes over one entry after the other, but with pieces."""
        has_complex = super()._init_group(group, params, grads, means, squares, maxima, steps)
        columns = params, grads, means, squares
        rows = list(zip(*columns, steps, strict=True))
        for column in (*columns, steps):
            column.clear()
        for *tensors, step in rows:
            for number, pieces in enumerate(zip(*_cut(tensors), strict=True)):
                for column, piece in zip(columns, pieces, strict=True):
                    column.append(piece)
                # torch adds 1 to each entry, so the tensor that counts the updates may be in the list only once.
                steps.append(step if number == 0 else step.clone())
        return has_complex


def _cut(tensors: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """Views of each tensor; the tensors have the same shape."""
    if not all(tensor.is_contiguous() for tensor in tensors):
        return [(tensor,) for tensor in tensors]
    return [tensor.detach().view(-1).split(PIECE) for tensor in tensors]

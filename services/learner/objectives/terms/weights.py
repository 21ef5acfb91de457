"""Entropy-aware dynamic weights (arXiv 2604.02288 section 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


def dynamic_weights(entropies: Tensor, beta: float, sum_ranks: Reduce, max_ranks: Reduce) -> Tensor:
    """w = exp(-beta * H) / mean over Omega of exp(-beta * H), Omega being the tokens of ALL ranks.

    Args:
        entropies: H of this rank's tokens routed to SDPO in the whole mini-batch, [n], nats; n may be 0.
        beta: >= 0; 0 gives exact ones.
        sum_ranks, max_ranks: element-wise reductions over ranks of a float64 tensor (identity on one rank). Both are
            called exactly once whatever n is, so ranks stay in step.

    Returns:
        [n], same dtype; averages 1 over Omega. The largest exponent is taken out first, so no beta underflows.
    """
    wide = entropies.detach().double()
    lowest = -max_ranks(torch.cat([-wide, wide.new_full((1,), -torch.inf)]).max().reshape(1))
    raw = torch.exp(-beta * (wide - lowest))
    total, count = sum_ranks(torch.stack([raw.sum(), raw.new_tensor(float(raw.numel()))])).unbind()
    return (raw * (count / total)).to(entropies.dtype)

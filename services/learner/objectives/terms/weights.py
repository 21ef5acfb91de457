"""Weights of distilled tokens: entropy-aware (arXiv 2604.02288 section 3.3), scaled, with a floor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


def dynamic_weights(
    entropies: Tensor,
    beta: float,
    sum_ranks: Reduce,
    max_ranks: Reduce,
    *,
    scales: Tensor | None = None,
    floor: float = 0.0,
) -> Tensor:
    """w = floor + (1 - floor) v / mean over Omega of v, v = s * exp(-beta * H), Omega being the tokens of ALL ranks.

    Args:
        entropies: H of this rank's tokens routed to SDPO in the whole mini-batch, [n], nats; n may be 0.
        beta: >= 0; 0 gives exact ones.
        sum_ranks, max_ranks: element-wise reductions over ranks of a float64 tensor (identity on one rank). Both are
            called exactly once whatever n is, so ranks stay in step.
        scales: s >= 0, [n], float64; None: 1. Given by all ranks or by none.
        floor: in [0, 1).

    Returns:
        [n], same dtype; averages 1 over Omega, unless every s is 0: then all are `floor`. The largest exponent is taken
        out first, so no beta underflows.
    """
    wide = entropies.detach().double()
    counted = wide if scales is None else wide.masked_fill(scales <= 0, torch.inf)
    lowest = -max_ranks(torch.cat([-counted, wide.new_full((1,), -torch.inf)]).max().reshape(1))
    if scales is None:
        raw = torch.exp(-beta * (wide - lowest))
    else:
        raw = torch.where(scales > 0, scales * torch.exp(-beta * (wide - lowest).clamp(min=0.0)), 0.0)
    total, count = sum_ranks(torch.stack([raw.sum(), raw.new_tensor(float(raw.numel()))])).unbind()
    weights = raw * (count / total) if scales is None or bool(total > 0) else raw
    return (floor + (1.0 - floor) * weights if floor else weights).to(entropies.dtype)

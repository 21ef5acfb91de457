"""What the passes find of each response token, by name."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatistics:
    """One number for each of n tokens, [n] each: real (of the layout's type) unless `dtype` says otherwise.

    A new one is a field here and a value in `Tokens.statistics`, which cannot be built without it. `sum` names the
    report's sum of it over all tokens.
    """

    logprobs: Tensor = field(metadata={"sum": "logprobs"})
    """log pi_theta of the sampled token."""
    old: Tensor = field(metadata={"sum": "old"})
    """log pi_old of the sampled token."""
    entropy: Tensor = field(metadata={"sum": "policy_entropy_sum"})
    """Of the student, nats."""
    teacher_entropy: Tensor = field(metadata={"sum": "teacher_entropy_sum"})
    """Nats; 0 without a teacher pass."""
    divergence: Tensor = field(metadata={"sum": "divergence_sum"})
    """Between student and teacher, nats; 0 outside the SDPO branch."""
    reference_kl: Tensor = field(metadata={"sum": "reference_kl_sum"})
    """From the initial model, nats, without its coefficient; 0 if it is not asked for."""
    clipped: Tensor = field(metadata={"sum": "clipped_sum", "dtype": torch.bool})
    """Whether the clip took the gradient away."""
    masked: Tensor = field(metadata={"sum": "masked_sum", "dtype": torch.bool})
    """Whether `engine_mask` left the token out."""
    bounded: Tensor = field(metadata={"sum": "bounded_sum", "dtype": torch.bool})
    """Whether `dual_clip` took the gradient away."""
    loss: Tensor
    """What the objective gives, weighted, before `aggregation`."""

    @classmethod
    def zeros(cls, num_tokens: int, dtype: torch.dtype, device: torch.device) -> Self:
        """Room for `num_tokens` tokens."""
        kinds = {item.name: item.metadata.get("dtype", dtype) for item in fields(cls)}
        return cls(**{name: torch.zeros(num_tokens, dtype=kind, device=device) for name, kind in kinds.items()})

    def write(self, tokens: Tensor, found: Self) -> None:
        """Take over what was found of `tokens` [n], int64: places in this object's tensors."""
        for item in fields(self):
            mine = getattr(self, item.name)
            mine[tokens] = getattr(found, item.name).detach().to(mine.dtype)

    def sums(self) -> dict[str, Tensor]:
        """Totals over all tokens, float64 scalars, by the name that `sum` gives."""
        return {
            item.metadata["sum"]: getattr(self, item.name).double().sum()
            for item in fields(self)
            if "sum" in item.metadata
        }

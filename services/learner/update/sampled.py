"""The distribution that a response token was sampled from: what the rollout engine makes of the model's logits.

pi_theta, pi_old and mu must be probabilities of one distribution for their ratios to compare like with like. So the
learner repeats what vLLM does, in its order: presence penalty, temperature, min-p, top-k, top-p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from services.contracts.run_config import RolloutSection
from services.learner.objectives.terms.divergence import log_floor
from services.learner.update.layout import Layout


@dataclass(frozen=True, slots=True)
class Sampled:
    """The settings of `rollout` that change the distribution."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0

    @classmethod
    def of(cls, rollout: RolloutSection) -> Self:
        return cls(rollout.temperature, rollout.top_k, rollout.top_p, rollout.min_p, rollout.presence_penalty)

    @property
    def is_cut(self) -> bool:
        """Whether tokens are ruled out."""
        return bool(self.top_k or self.top_p < 1 or self.min_p)

    @property
    def is_plain(self) -> bool:
        """Whether it is the softmax of the logits at `temperature`."""
        return not self.is_cut and not self.presence_penalty

    def logprobs(self, logits: Tensor, layout: Layout, tokens: Tensor) -> Tensor:
        """Log-probabilities of the sampled tokens, [n], natural. Differentiable in `logits`, but not through which
        tokens are ruled out; the sampled one never is, since rounding may differ from the engine's.

        Args:
            logits: [n, vocabulary], divided by `temperature`.
            tokens: the tokens' places in the layout, [n], int64.
        """
        targets = layout.targets[tokens, None]
        if self.presence_penalty:
            seen = seen_before(layout, tokens, logits.shape[-1])
            logits = logits - seen * (self.presence_penalty / self.temperature)
        if self.is_cut:
            kept = self._kept(logits.detach()).scatter_(-1, targets, True)
            logits = logits.masked_fill(~kept, -math.inf)
        return log_floor((logits.gather(-1, targets) - logits.logsumexp(-1, keepdim=True)).squeeze(-1))

    def _kept(self, logits: Tensor) -> Tensor:
        """The tokens that may be sampled, [n, vocabulary], bool."""
        if self.min_p:
            floor = logits.amax(-1, keepdim=True) + math.log(self.min_p)
            logits = logits.masked_fill(logits < floor, -math.inf)
        if 0 < self.top_k < logits.shape[-1]:
            last = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < last, -math.inf)
        if self.top_p < 1:
            values, order = logits.sort(-1)
            out = values.softmax(-1).cumsum(-1) <= 1 - self.top_p
            out[:, -1] = False
            logits = logits.scatter(-1, order, values.masked_fill(out, -math.inf))
        return logits > -math.inf


def seen_before(layout: Layout, tokens: Tensor, width: int) -> Tensor:
    """Whether each token of the vocabulary occurs in the response before place `tokens` [n]: [n, width], bool.

    On a GPU this waits for the device; only a presence penalty asks for it.
    """
    begins = layout.begins[tokens]
    counts = tokens - begins
    rows = torch.arange(len(tokens), device=tokens.device).repeat_interleave(counts)
    skipped = counts.cumsum(0) - counts
    places = torch.arange(len(rows), device=tokens.device) - skipped[rows] + begins[rows]
    seen = torch.zeros((len(tokens), width), dtype=torch.bool, device=tokens.device)
    seen[rows, layout.targets[places]] = True
    return seen

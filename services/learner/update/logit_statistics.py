"""Reduces a chunk of logits to the few numbers per token that the objectives need, in one pass over the vocabulary.

Every buffer here is [chunk, vocabulary]; the hand-written gradient keeps just one of them (the probabilities), where
composing log-softmax, gather, top-K and log-sum-exp would keep several.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from services.learner.objectives.terms.divergence import log_floor, log_tail
from services.learner.objectives.terms.entropy import expected_logit


class Cut(NamedTuple):
    """Numbers of n tokens; log-probabilities natural, in the type of the logits (float32 or float64)."""

    logprobs: Tensor
    """Log-probability of the sampled token, [n]; that of a token without probability is `log_floor`'s."""
    entropy: Tensor
    """Over the full vocabulary, nats, [n]; without gradient."""
    buckets: Tensor
    """Log-probabilities of the K chosen tokens, which may be -inf, and, last, of all others together, [n, K + 1];
    [n, 0] for K = 0."""
    chosen: Tensor
    """The K token ids, [n, K], int64."""


def cut_fixed(logits: Tensor, targets: Tensor, chosen: Tensor | None = None) -> Cut:
    """Cut a distribution at given tokens. No gradient.

    Args:
        logits: [n, vocabulary]; -inf for tokens that a model rules out, but not for all.
        targets: sampled tokens, [n], int64.
        chosen: tokens that get a bucket of their own, [n, K], int64; None for no buckets (K = 0).
    """
    with torch.no_grad():
        return _measure(logits, targets, targets.new_zeros((len(targets), 0)) if chosen is None else chosen)[0]


def cut_student(logits: Tensor, targets: Tensor, top_k: int) -> Cut:
    """Cut a distribution at its own `top_k` likeliest tokens (0 for no buckets). Differentiable in `logits` through
    `logprobs` and `buckets`; shapes as `cut_fixed`."""
    return Cut(*_StudentCut.apply(logits, targets, top_k))


def _measure(logits: Tensor, targets: Tensor, chosen: Tensor) -> tuple[Cut, Tensor, Tensor]:
    """The cut, the probabilities [n, vocabulary] and the tail's mass [n]."""
    peak = logits.amax(-1, keepdim=True)
    probabilities = (logits - peak).exp_()
    mass = probabilities.sum(-1, keepdim=True)
    probabilities.div_(mass)
    normaliser = peak + mass.log()
    logprobs = log_floor((logits.gather(-1, targets[:, None]) - normaliser).squeeze(-1))
    entropy = (normaliser.squeeze(-1) - expected_logit(probabilities, logits)).clamp_(min=0.0)
    buckets, tail = logits.new_zeros((len(logits), 0)), logits.new_zeros(len(logits))
    if chosen.shape[-1]:
        head = logits.gather(-1, chosen) - normaliser
        # The tail is summed from its own (positive) members: 1 - sum(head) would lose a small tail to rounding.
        probabilities.scatter_(-1, chosen, 0.0)
        tail = probabilities.sum(-1)
        probabilities.scatter_(-1, chosen, head.exp())
        buckets = torch.cat([head, log_tail(tail)[:, None]], dim=-1)
    return Cut(logprobs, entropy, buckets, chosen), probabilities, tail


class _StudentCut(torch.autograd.Function):
    """`_measure` at the distribution's own top K, with its gradient: for the loss's derivatives a (sampled token),
    b_k (chosen tokens) and c (tail), dL/dlogit_v = [v sampled] a + [v chosen] b_v + [v in tail] c p_v / tail
    - p_v (a + sum b + c)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, top_k: int) -> tuple[Tensor, ...]:
        chosen = logits.topk(top_k, dim=-1, sorted=False).indices if top_k else targets.new_zeros((len(targets), 0))
        cut, probabilities, tail = _measure(logits, targets, chosen)
        ctx.save_for_backward(probabilities, targets, chosen, tail)
        ctx.mark_non_differentiable(cut.entropy, chosen)
        return tuple(cut)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        probabilities, targets, chosen, tail = ctx.saved_tensors
        sampled, buckets = grads[0], grads[2]
        total = share = sampled
        if chosen.shape[-1]:
            tiny = torch.finfo(tail.dtype).tiny
            # A tail at `log_tail`'s floor is a constant.
            rest = buckets[:, -1].masked_fill(tail < tiny, 0.0)
            total = sampled + buckets[:, :-1].sum(-1) + rest
            # Floored well above the smallest number, so that the quotient stays finite.
            share = total - rest / tail.clamp(min=tiny * 1e4)
        gradient = probabilities * -share[:, None]
        if chosen.shape[-1]:
            own = buckets[:, :-1] - probabilities.gather(-1, chosen) * total[:, None]
            gradient.scatter_(-1, chosen, own)
        gradient.scatter_add_(-1, targets[:, None], sampled[:, None])
        return gradient, None, None

"""What one optimizer update reports: exact sums and counts over all micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from services.contracts.events import Histogram
from services.contracts.run_config import ObjectiveSection
from services.learner.objectives.terms.ratios import engine_correction, mismatch_kl, policy_ratio
from services.learner.update.layout import Layout

WEIGHT_EDGES: Final = [0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0]
"""Buckets of the dynamic weights."""


@dataclass(frozen=True, slots=True)
class TokenDetail:
    """One sequence token by token, for display. Lists have one entry per response token."""

    logprobs: list[float]
    teacher_entropy: list[float]
    """Nats; this and the next two are empty if no teacher pass was made."""
    weight: list[float]
    divergence: list[float]


@dataclass(frozen=True, slots=True)
class MinibatchReport:
    """One optimizer update. `sums` (names as in `measure`, and counts) and `weight_counts` cover all ranks; the rest is
    this rank's."""

    sums: dict[str, float]
    weight_counts: list[int]
    """Tokens routed to SDPO by dynamic weight, buckets of `WEIGHT_EDGES`."""
    gradient_norm: float
    """Global, before clipping."""
    seconds_teacher: float
    seconds_train: float
    details: dict[int, TokenDetail] = field(default_factory=dict)
    """By index of the requested sequence."""

    @property
    def loss(self) -> float:
        """The objective's value over the mini-batch."""
        return (self.sums["loss_grpo_sum"] + self.sums["loss_sdpo_sum"]) / max(1.0, self.sums["denominator"])


def measure(layout: Layout, objective: ObjectiveSection) -> dict[str, Tensor]:
    """This rank's sums over tokens, by name: float64 scalars on the layout's device. Besides those that are reported,
    `behaviour`, `old` and `logprobs` carry NaN and infinity to the check on every rank."""
    loss, old = layout.stats.loss.double(), layout.stats.old.double()
    behaviour, sdpo = layout.behaviour.double(), layout.is_sdpo.double()
    loss = loss if layout.shares is None else loss * layout.shares.double()
    uncapped = policy_ratio(old, behaviour)
    return layout.stats.sums() | {
        "loss_grpo_sum": (loss * (1 - sdpo)).sum(),
        "loss_sdpo_sum": (loss * sdpo).sum(),
        "weight_sum": (layout.weights.double() * sdpo).sum(),
        "truncated_sum": (uncapped > objective.importance_weight_cap).sum(),
        "importance_weight_sum": engine_correction(old, behaviour, objective.importance_weight_cap).sum(),
        "mismatch_sum": (old - behaviour).abs().sum(),
        "mismatch_kl_sum": mismatch_kl(old, behaviour).sum(),
        "behaviour": behaviour.sum(),
    }


def count_weights(layout: Layout) -> Tensor:
    """Histogram of this rank's dynamic weights, [len(WEIGHT_EDGES) - 1], float64."""
    edges = torch.tensor(WEIGHT_EDGES[1:-1], dtype=torch.float64, device=layout.weights.device)
    bucket = torch.bucketize(layout.weights[layout.is_sdpo].double(), edges, right=True)
    return torch.bincount(bucket, minlength=len(WEIGHT_EDGES) - 1).double()


def take_details(layout: Layout, requested: Iterable[int]) -> dict[int, TokenDetail]:
    """Token lists of the requested sequences; those not routed or empty are left out."""
    details = {}
    for row in set(requested) & layout.spans.keys():
        span = layout.spans[row]
        taught, sdpo = bool(layout.slots[span][0] >= 0), bool(layout.is_sdpo[span][0])
        details[row] = TokenDetail(
            logprobs=layout.stats.logprobs[span].tolist(),
            teacher_entropy=layout.stats.teacher_entropy[span].tolist() if taught else [],
            weight=layout.weights[span].tolist() if sdpo else [],
            divergence=layout.stats.divergence[span].tolist() if sdpo else [],
        )
    return details


def step_metrics(reports: Sequence[MinibatchReport]) -> dict[str, float]:
    """The objective's share of `contracts.step_metrics.STEP_METRICS`, over all mini-batches of a step.

    Means are over the tokens that they concern; a mean over no token is 0.
    """

    def total(name: str) -> float:
        return sum(report.sums[name] for report in reports)

    def share(name: str, count: str) -> float:
        return total(name) / total(count) if total(count) else 0.0

    return {
        "policy_entropy_nats": share("policy_entropy_sum", "num_tokens"),
        "teacher_entropy_nats": share("teacher_entropy_sum", "num_teacher_tokens"),
        "loss": share("loss_grpo_sum", "denominator") + share("loss_sdpo_sum", "denominator"),
        "loss_grpo": share("loss_grpo_sum", "denominator"),
        "loss_sdpo": share("loss_sdpo_sum", "denominator"),
        "divergence_nats": share("divergence_sum", "num_sdpo_tokens"),
        "gradient_norm": sum(report.gradient_norm for report in reports) / max(1, len(reports)),
        "reference_kl_nats": share("reference_kl_sum", "num_grpo_tokens"),
        "clip_ratio": share("clipped_sum", "num_policy_tokens"),
        "dual_clip_ratio": share("bounded_sum", "num_policy_tokens"),
        "importance_weight_truncated_ratio": share("truncated_sum", "num_tokens"),
        "engine_masked_ratio": share("masked_sum", "num_tokens"),
        "importance_weight_mean": share("importance_weight_sum", "num_tokens"),
        "logprob_mismatch_nats": share("mismatch_sum", "num_tokens"),
        "logprob_mismatch_kl_nats": share("mismatch_kl_sum", "num_tokens"),
        "num_tokens": total("num_tokens"),
        "num_computed_tokens": total("num_computed_tokens"),
        "num_teacher_rollouts": total("num_teacher_rollouts"),
        "seconds_teacher": sum(report.seconds_teacher for report in reports),
        "seconds_train": sum(report.seconds_train for report in reports),
    }


def weight_histogram(reports: Sequence[MinibatchReport]) -> Histogram:
    """`distillation_weight` of `StepFinished.histograms`."""
    counts = [sum(column) for column in zip(*(report.weight_counts for report in reports), strict=True)]
    return Histogram(
        edges=list(WEIGHT_EDGES),
        counts=counts or [0] * (len(WEIGHT_EDGES) - 1),
        total=sum(report.sums["weight_sum"] for report in reports),
    )

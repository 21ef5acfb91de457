"""An experiment's results from the histories of its final runs: tables, paired differences, verdicts on claims.

Pure functions. Every number comes with all seeds; intervals are Student's t over seeds, two-sided 95%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from statistics import fmean, stdev

import mpmath

from services.contracts.events import EvaluationFinished
from services.contracts.experiments.experiment import EVALUATED, ExperimentConfig, Quantity
from services.contracts.records import (
    ClaimResult,
    CurvePoint,
    Estimate,
    MethodResult,
    Results,
    Verdict,
)
from services.contracts.step_metrics import has_value

NUM_WINDOWS = 5
"""Number of parts of a run in the table of metrics over time."""
WINDOWED = (
    "reward_mean",
    "routing_ratio_sdpo",
    "teacher_information_ratio",
    "teacher_entropy_nats",
    "policy_entropy_nats",
    "response_tokens_mean",
    "seconds",
)
COLLAPSED_BELOW = 0.5
"""A run has collapsed if its score is below this share of its best evaluation."""


@dataclass(frozen=True)
class History:
    """One final run."""

    run_id: str
    seed: int
    steps: Sequence[Mapping[str, float]]
    """Metrics of each training step, from the first."""
    evaluations: Sequence[EvaluationFinished]
    """In the order of their steps."""
    num_ahead: int
    """Number of steps that may be sampled ahead: `training.max_staleness` + 1."""

    def seconds_at(self, step: int) -> float:
        """Seconds of training up to a step, as if there were no evaluations.

        During an evaluation the next steps are sampled at no cost, so each counts as long as an undisturbed step.
        """
        return self._elapsed[min(step, len(self.steps))]

    @cached_property
    def _elapsed(self) -> list[float]:
        """`seconds_at` by step, from 0 on."""
        helped = {item.step + ahead for item in self.evaluations for ahead in range(1, self.num_ahead + 1)}
        times = [(index, metrics.get("seconds", 0.0)) for index, metrics in enumerate(self.steps, start=1)]
        free = [seconds for index, seconds in times if index not in helped]
        usual = fmean(free) if free else None
        counted = (usual if usual is not None and index in helped else seconds for index, seconds in times)
        return [0.0, *accumulate(counted)]

    def best_within(self, *, steps: float = math.inf, seconds: float = math.inf) -> float | None:
        """The best accuracy of an evaluation within a budget; None if there is no evaluation."""
        fitting = [
            item.accuracy
            for item in self.evaluations
            if item.step <= steps and (seconds == math.inf or self.seconds_at(item.step) <= seconds)
        ]
        return max(fitting, default=None)

    def score(self, last: int) -> float | None:
        """Mean accuracy over the last evaluations after some training."""
        trained = [item.accuracy for item in self.evaluations if item.step > 0][-last:]
        return fmean(trained) if trained else None

    def has_collapsed(self, last: int) -> bool:
        score, best = self.score(last), self.best_within()
        return score is not None and best is not None and score < COLLAPSED_BELOW * best

    def quantity(self, quantity: Quantity, last: int) -> float | None:
        """A claim's number for this run; None if the run has none."""
        if quantity.metric in EVALUATED:
            return self._evaluated(quantity, last)
        total = len(self.steps)
        match quantity.at:
            case "start":
                first, final = 1, max(1, total // NUM_WINDOWS)
            case "end":
                first, final = total - max(1, total // NUM_WINDOWS) + 1, total
            case "best":
                first, final = 1, total
            case int(step):
                first, final = 1, step
            case (first, final):
                pass
        return self.mean(quantity.metric, first, final)

    def _evaluated(self, quantity: Quantity, last: int) -> float | None:
        trained = [item for item in self.evaluations if item.step > 0]
        match quantity.at:
            case "before":
                shown = [item for item in self.evaluations if item.step == 0]
            case "start":
                shown = trained[:1]
            case "end":
                shown = trained[-last:]
            case "best":
                return max((getattr(item, quantity.metric) for item in trained), default=None)
            case int(step):
                shown = [item for item in self.evaluations if item.step == step]
            case (first, final):
                shown = [item for item in self.evaluations if first <= item.step <= final]
        values = [getattr(item, quantity.metric) for item in shown]
        return fmean(values) if values else None

    def mean(self, metric: str, first: int, final: int) -> float | None:
        """Mean of a metric over those of the steps first..final that have a value of it."""
        values = [metrics[metric] for metrics in self.steps[first - 1 : final] if has_value(metric, metrics)]
        return fmean(values) if values else None


def summarize(experiment: ExperimentConfig, histories: Mapping[tuple[str, int], History]) -> Results:
    """Results of the final runs by method and seed. Missing runs are counted, not estimated."""
    seeds = list(experiment.final.seeds)
    rows = {method: [histories.get((method, seed)) for seed in seeds] for method in experiment.methods}
    return Results(
        seeds=seeds,
        baseline=experiment.compared_with,
        methods=[_method(experiment, method, rows) for method in rows],
        claims=[_claim(experiment, index, rows) for index in range(len(experiment.claims))],
    )


def _method(experiment: ExperimentConfig, method: str, rows: Mapping[str, Sequence[History | None]]) -> MethodResult:
    own, last = rows[method], experiment.last_evaluations
    present = [history for history in own if history is not None]
    score = _estimate(own, lambda history: history.score(last))
    base = _estimate(rows[experiment.compared_with], lambda history: history.score(last))
    difference = _paired(score.values, base.values)
    return MethodResult(
        method=method,
        before=_estimate(own, lambda history: history.best_within(steps=0)),
        score=score,
        within_steps={
            str(steps): _estimate(own, lambda history, steps=steps: history.best_within(steps=steps))  # type: ignore[misc]
            for steps in experiment.budgets.steps
        },
        within_seconds={
            f"{seconds:g}": _estimate(own, lambda history, seconds=seconds: history.best_within(seconds=seconds))  # type: ignore[misc]
            for seconds in experiment.budgets.seconds
        },
        seconds_per_step=_estimate(own, lambda history: history.seconds_at(len(history.steps)) / len(history.steps)),
        num_collapsed=sum(history.has_collapsed(last) for history in present),
        num_missing=len(own) - len(present),
        difference=None if method == experiment.compared_with else difference,
        num_ahead=sum(value is not None and value > 0 for value in difference.values),
        windows={metric: _windows(present, metric) for metric in WINDOWED},
        curve=_curve(present),
    )


def _claim(experiment: ExperimentConfig, index: int, rows: Mapping[str, Sequence[History | None]]) -> ClaimResult:
    claim, last = experiment.claims[index], experiment.last_evaluations
    higher, lower = (
        _estimate(rows[side.method], lambda history, side=side: history.quantity(side, last))  # type: ignore[misc]
        for side in (claim.higher, claim.lower)
    )
    difference = _paired(higher.values, lower.values)
    return ClaimResult(
        claim=claim.claim, verdict=verdict(difference), higher=higher, lower=lower, difference=difference
    )


def verdict(difference: Estimate) -> Verdict:
    """What an interval of differences says about the claim that the difference is above 0."""
    if difference.low is None or difference.high is None:
        return "no data"
    if difference.low > 0:
        return "shown"
    return "opposite" if difference.high < 0 else "not shown"


def _estimate(rows: Sequence[History | None], number: Callable[[History], float | None]) -> Estimate:
    return interval([None if history is None else number(history) for history in rows])


def _paired(first: Sequence[float | None], second: Sequence[float | None]) -> Estimate:
    pairs = zip(first, second, strict=True)
    return interval([None if a is None or b is None else a - b for a, b in pairs])


def interval(values: Sequence[float | None]) -> Estimate:
    """Mean and 95% interval, by Student's t distribution, of the values that are not None."""
    present = [value for value in values if value is not None]
    if not present:
        return Estimate(mean=None, values=list(values))
    mean = fmean(present)
    if len(present) < 2:
        return Estimate(mean=mean, values=list(values))
    margin = student_t(len(present) - 1) * stdev(present) / math.sqrt(len(present))
    return Estimate(mean=mean, low=mean - margin, high=mean + margin, values=list(values))


@cache
def student_t(degrees: int) -> float:
    """The 97.5% quantile of Student's t distribution.

    P(|T| > t) is the regularized incomplete beta function I_x(n/2, 1/2) at x = n / (n + t^2).
    """

    def excess(t: mpmath.mpf) -> mpmath.mpf:
        x = degrees / (degrees + t * t)
        return mpmath.betainc(mpmath.mpf(degrees) / 2, mpmath.mpf(1) / 2, 0, x, regularized=True) - mpmath.mpf("0.05")

    return float(mpmath.findroot(excess, (1.9, 13.0), solver="anderson", tol=1e-20))


def _windows(histories: Sequence[History], metric: str) -> list[float | None]:
    found: list[float | None] = []
    for window in range(NUM_WINDOWS):
        means = [
            history.mean(
                metric, window * len(history.steps) // NUM_WINDOWS + 1, (window + 1) * len(history.steps) // NUM_WINDOWS
            )
            for history in histories
        ]
        present = [value for value in means if value is not None]
        found.append(fmean(present) if present else None)
    return found


def _curve(histories: Sequence[History]) -> list[CurvePoint]:
    steps = sorted({item.step for history in histories for item in history.evaluations})
    points = []
    for step in steps:
        values = [item.accuracy for history in histories for item in history.evaluations if item.step == step]
        seconds = fmean(history.seconds_at(step) for history in histories)
        points.append(CurvePoint(step=step, seconds=seconds, mean=fmean(values), low=min(values), high=max(values)))
    return points

"""Runs of the embedded benchmark on a whole deployment, several seeds each, with means, spreads and bands of a plot."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.deployment import demo_config, finish
from turnout import Client


@dataclass(frozen=True, slots=True)
class Curve:
    """One run."""

    seed: int
    accuracy: dict[int, float]
    """avg@k on the held-out questions, by step."""
    metrics: list[dict[str, float]]
    """Of each step, from the first."""
    ahead: int
    """Steps that can be sampled before they are needed."""

    def mean(self, name: str, start: float = 0.5, end: float = 1.0) -> float:
        """Mean of a metric over a part of the steps; the default is the second half."""
        count = len(self.metrics)
        return statistics.fmean(row[name] for row in self.metrics[int(start * count) : max(1, int(end * count))])

    @property
    def undisturbed(self) -> list[dict[str, float]]:
        """Steps that no evaluation sped up: during one, groups for the steps after it are sampled for nothing."""
        helped = {mark + offset for mark in self.accuracy for offset in range(1, self.ahead + 1)}
        rows = [row for step, row in enumerate(self.metrics, start=1) if step not in helped]
        return rows or self.metrics

    def pace(self, name: str = "seconds") -> float:
        """Mean seconds a step, or of a part of it."""
        return statistics.fmean(row[name] for row in self.undisturbed)

    def seconds_at(self, step: int) -> float:
        """Training time up to `step`, as if there were no evaluations."""
        return step * self.pace()

    @property
    def seconds(self) -> float:
        return self.seconds_at(len(self.metrics))

    def accuracy_after(self, seconds: float) -> float:
        """Accuracy after so much training time, between evaluations by straight lines."""
        points = [(self.seconds_at(step), value) for step, value in sorted(self.accuracy.items())]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if x0 <= seconds <= x1:
                return y0 + (y1 - y0) * (seconds - x0) / max(x1 - x0, 1e-9)
        return points[-1][1]

    def seconds_to(self, accuracy: float) -> float:
        """Training time until the accuracy is reached first; NaN where it never is."""
        points = [(self.seconds_at(step), value) for step, value in sorted(self.accuracy.items())]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if y1 >= accuracy:
                return x0 + (x1 - x0) * max(0.0, accuracy - y0) / max(y1 - y0, 1e-9)
        return math.nan


def play(client: Client, name: str, *, steps: int, seed: int, evaluations: int, **sections: Any) -> Curve:
    """The demo's run with changes, to its end; a word on stderr."""
    training = {"steps": steps, "seed": seed, **sections.pop("training", {})}
    evaluation = {"every_steps": max(1, steps // evaluations), "max_questions": 64} | sections.pop("evaluation", {})
    started = time.monotonic()
    run = client.create_run(
        demo_config(name=f"{name} seed {seed}", training=training, evaluation=evaluation, **sections)
    )
    ended = finish(client, run.id)
    if ended.state != "succeeded":
        raise SystemExit(f"run {name!r} (seed {seed}) is {ended.state}: {ended.reason}")
    curve = Curve(
        seed,
        {item.step: item.accuracy for item in client.evaluations(run.id)},
        [step.metrics for step in client.steps(run.id)],
        ended.config["training"]["max_staleness"] + 1,
    )
    last = max(curve.accuracy)
    print(
        f"  {name}, seed {seed}: accuracy {curve.accuracy[0]:.3f} -> {curve.accuracy[last]:.3f}, {curve.seconds:.0f} s "
        f"of training in {time.monotonic() - started:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return curve


def spread(curves: Sequence[Curve], value: Callable[[Curve], float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds, as a cell."""
    values = [value(curve) for curve in curves]
    if any(math.isnan(item) for item in values):
        reached = [item for item in values if not math.isnan(item)]
        return f"{len(reached)} of {len(values)}" if len(values) > 1 else "never"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def band(
    axes: Any,
    places: Sequence[float],
    rows: Sequence[Sequence[float]],
    label: str,
    marker: str = "",
    color: str | None = None,
) -> None:
    """Mean line with a band from the lowest to the highest seed."""
    columns = list(zip(*rows, strict=True))
    means = [statistics.fmean(column) for column in columns]
    (line,) = axes.plot(places, means, label=label, marker=marker, color=color)
    if len(rows) > 1:
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def seeds_text(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}; one seed: differences of a few points are noise"
    return f"{len(seeds)} seeds; mean ± standard deviation over seeds"

"""The plots of reports and comparisons, drawn with matplotlib as PNG bytes, without a display."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.contracts.step_metrics import CHARTS, Chart, Line, lines
from turnout.cli.run_data import RunData

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#BBBBBB")
"""Okabe and Ito's palette, which colour-blind readers can distinguish; the last is for the remainder."""
DASHES = {"solid": "-", "dash": "--", "dot": ":"}
SMOOTHING_STEPS = 9


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture with its caption."""

    name: str
    """File name without extension."""
    title: str
    caption: str
    png: bytes


def report_plots(data: RunData) -> list[Plot]:
    """The charts of one run, in reading order. Those without any data are left out."""
    plots = []
    for chart in CHARTS:
        png = _picture(lambda axes, chart=chart: _draw(axes, data, chart))  # type: ignore[misc]
        if png is not None:
            smoothing = "" if chart.rest_of else f" Thin: each step; thick: mean of {SMOOTHING_STEPS} steps."
            plots.append(Plot(chart.key, chart.title, chart.caption + smoothing, png))
    return plots


def comparison_plot(runs: Sequence[RunData]) -> bytes | None:
    """Runs on common axes: reward over steps, evaluations as dots; None without any data."""

    def draw(axes: Any) -> bool:
        drawn = False
        for index, data in enumerate(runs):
            color = COLORS[index % len(COLORS)]
            label = f"{data.run.name} ({data.run.id[:8]})"
            drawn |= _line(axes, data, "reward_mean", label, color)
            if data.main_evaluations:
                steps = [item.step for item in data.main_evaluations]
                axes.plot(steps, [item.accuracy for item in data.main_evaluations], "o--", color=color, linewidth=0.8)
                drawn = True
        axes.set_ylabel("mean reward (lines), avg@k (dots)")
        axes.set_ylim(0, 1)
        return drawn

    return _picture(draw, size=(8, 4.5))


def smoothed(values: Sequence[float], width: int = SMOOTHING_STEPS) -> list[float]:
    """Mean over the `width` values around each (fewer at the ends)."""
    half = width // 2
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _picture(draw: Callable[[Any], bool], size: tuple[float, float] = (6.4, 3.4)) -> bytes | None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.add_subplot()
    if not draw(axes):
        return None
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Any, data: RunData, chart: Chart) -> bool:
    """Draws a chart's bands, lines and evaluations. False if the run has none of them."""
    axes.set_ylabel(chart.unit)
    drawn = _bands(axes, data, chart)
    right = None
    for metric, line in lines(chart):
        if line.kind == "line":
            if line.right and right is None:
                right = axes.twinx()
            drawn |= _line(right if line.right else axes, data, metric.name, line.label, COLORS[line.color], line)
    if chart.with_evaluations and data.main_evaluations:
        _evaluations(axes, data)
        drawn = True
    if chart.unit == "share":
        axes.set_ylim(0, 1.02)
    elif chart.from_zero:
        axes.set_ylim(bottom=0)
    if right is not None:
        right.set_visible(bool(right.get_lines()))
        right.set_ylim(bottom=0)
        right.legend(*right.get_legend_handles_labels(), frameon=False, fontsize=8, loc="upper right")
    return drawn


def _bands(axes: Any, data: RunData, chart: Chart) -> bool:
    """Stacked areas and bars, and the remainder that they leave of the whole."""
    shown = [(metric.name, line) for metric, line in lines(chart) if line.kind != "line"]
    steps = [step for step in data.steps if any(name in step.metrics for name, _ in shown)]
    if not steps:
        return False
    bands = [[step.metrics.get(name, 0.0) for step in steps] for name, _ in shown]
    labels, colors = [line.label for _, line in shown], [COLORS[line.color] for _, line in shown]
    if chart.rest_of:
        wholes = [step.metrics.get(chart.rest_of, 0.0) for step in steps]
        bands.append([max(0.0, whole - sum(parts)) for whole, *parts in zip(wholes, *bands, strict=True)])
        labels, colors = [*labels, "other"], [*colors, COLORS[-1]]
    axes.stackplot([step.step for step in steps], *bands, labels=labels, colors=colors, alpha=0.8)
    return True


def _line(axes: Any, data: RunData, name: str, label: str, color: str, line: Line | None = None) -> bool:
    """One metric: thin as measured, thick smoothed. False if the run has no such metric."""
    steps, values = data.series(name, only_if=line.only_if if line else "")
    if not steps:
        return False
    axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.4)
    dash = DASHES[line.dash if line else "solid"]
    axes.plot(steps, smoothed(values), dash, color=color, linewidth=1.8, label=label)
    return True


def _evaluations(axes: Any, data: RunData) -> None:
    steps = [item.step for item in data.main_evaluations]
    k = data.main_evaluations[-1].num_samples
    axes.plot(
        steps, [item.accuracy for item in data.main_evaluations], "o-", color=COLORS[2], label=f"avg@{k} (held out)"
    )
    axes.plot(
        steps, [item.pass_at_k for item in data.main_evaluations], "o:", color=COLORS[3], label=f"pass@{k} (held out)"
    )

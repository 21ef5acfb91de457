"""The plots of reports and comparisons, drawn with matplotlib into PNG bytes (no display is needed)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from turnout.cli.run_data import RunData

BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
"""Okabe and Ito's palette: told apart by colour-blind readers too."""
PHASES = ("wait", "teacher", "train", "publish", "checkpoint")
SMOOTHING_STEPS = 9


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture and how to read it."""

    name: str
    """File name without ending."""
    title: str
    caption: str
    png: bytes


def report_plots(data: RunData) -> list[Plot]:
    """The plots of one run, in reading order. Those without any data are left out."""
    k = data.evaluations[-1].num_samples if data.evaluations else 16
    makers: list[tuple[str, str, str, Callable[[Any, RunData], bool]]] = [
        (
            "reward",
            "Reward and accuracy",
            f"Thin: each step; thick: mean of {SMOOTHING_STEPS} steps. Dots: avg@{k} on held-out questions.",
            _draw_reward,
        ),
        (
            "routing",
            "Routing",
            "Share of rollouts that went to each branch. The SDPO share falls as fewer rollouts fail.",
            _draw_routing,
        ),
        (
            "entropy",
            "Entropy",
            "Mean entropy over response tokens (policy) and over tokens routed to SDPO (teacher). A policy entropy "
            "near zero early in a run is a collapse.",
            _draw_entropy,
        ),
        (
            "staleness",
            "Staleness and mismatch",
            "Age of the trained tokens in weight versions, and how far the log-probs of learner and engine differ.",
            _draw_staleness,
        ),
        ("length", "Response length", "Mean response tokens, and the share that was cut at the limit.", _draw_length),
        (
            "time",
            "Step time by phase",
            "Where the learner spends each step. Waiting means the samplers are behind.",
            _draw_time,
        ),
    ]
    plots = []
    for name, title, caption, draw in makers:
        png = _picture(lambda axes, draw=draw: draw(axes, data))  # type: ignore[misc]
        if png is not None:
            plots.append(Plot(name, title, caption, png))
    return plots


def comparison_plot(runs: Sequence[RunData]) -> bytes | None:
    """Runs on common axes: reward over steps, evaluations as dots; None without any data."""

    def draw(axes: Any) -> bool:
        drawn = False
        for index, data in enumerate(runs):
            colour = COLOURS[index % len(COLOURS)]
            label = f"{data.run.name} ({data.run.id[:8]})"
            drawn |= _line(axes, data, "reward_mean", label, colour)
            if data.evaluations:
                steps = [item.step for item in data.evaluations]
                axes.plot(steps, [item.accuracy for item in data.evaluations], "o--", color=colour, linewidth=0.8)
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


def _line(axes: Any, data: RunData, name: str, label: str, colour: str) -> bool:
    """One metric, thin as it is and thick smoothed. False where the run has no such metric."""
    steps, values = data.series(name)
    if not steps:
        return False
    axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.4)
    axes.plot(steps, smoothed(values), color=colour, linewidth=1.8, label=label)
    return True


def _draw_reward(axes: Any, data: RunData) -> bool:
    drawn = _line(axes, data, "reward_mean", "reward (training)", BLUE)
    if data.series("accuracy") != data.series("reward_mean"):  # rewards of 0 and 1 only: the same line
        drawn |= _line(axes, data, "accuracy", "accuracy (training)", SKY)
    if data.evaluations:
        steps = [item.step for item in data.evaluations]
        k = data.evaluations[-1].num_samples
        axes.plot(steps, [item.accuracy for item in data.evaluations], "o-", color=RED, label=f"avg@{k} (held out)")
        axes.plot(
            steps, [item.pass_at_k for item in data.evaluations], "o:", color=ORANGE, label=f"pass@{k} (held out)"
        )
        drawn = True
    axes.set_ylim(0, 1.02)
    return drawn


def _draw_routing(axes: Any, data: RunData) -> bool:
    drawn = _line(axes, data, "routing_ratio_grpo", "GRPO branch", BLUE)
    drawn |= _line(axes, data, "routing_ratio_sdpo", "SDPO branch", ORANGE)
    drawn |= _line(axes, data, "teacher_information_ratio", "with teacher information", GREEN)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of rollouts")
    return drawn


def _draw_entropy(axes: Any, data: RunData) -> bool:
    drawn = _line(axes, data, "policy_entropy_nats", "policy", BLUE)
    drawn |= _line(axes, data, "teacher_entropy_nats", "self-teacher", ORANGE)
    axes.set_ylabel("nats")
    axes.set_ylim(bottom=0)
    return drawn


def _draw_staleness(axes: Any, data: RunData) -> bool:
    drawn = _line(axes, data, "staleness_mean", "mean staleness", BLUE)
    drawn |= _line(axes, data, "staleness_max", "largest staleness", SKY)
    axes.set_ylabel("weight versions")
    axes.set_ylim(bottom=0)
    steps, values = data.series("logprob_mismatch_nats")
    if steps:
        right = axes.twinx()
        right.plot(steps, values, color=RED, linewidth=1)
        right.set_ylabel("log-prob mismatch, nats", color=RED)
        right.set_ylim(bottom=0)
        drawn = True
    return drawn


def _draw_length(axes: Any, data: RunData) -> bool:
    drawn = _line(axes, data, "response_tokens_mean", "mean response", BLUE)
    axes.set_ylabel("tokens")
    axes.set_ylim(bottom=0)
    steps, values = data.series("truncated_ratio")
    if steps:
        right = axes.twinx()
        right.plot(steps, values, color=RED, linewidth=1)
        right.set_ylabel("share cut at the limit", color=RED)
        right.set_ylim(0, max(0.05, *values) * 1.1)
    return drawn


def _draw_time(axes: Any, data: RunData) -> bool:
    steps, total = data.series("seconds")
    if not steps:
        return False
    by_step = {step.step: step.metrics for step in data.steps}
    bands = [[by_step[step].get(f"seconds_{phase}", 0.0) for step in steps] for phase in PHASES]
    rest = [max(0.0, whole - sum(parts)) for whole, *parts in zip(total, *bands, strict=True)]
    axes.stackplot(steps, *bands, rest, labels=[*PHASES, "other"], colors=[*COLOURS[:5], "#BBBBBB"])
    axes.set_ylabel("seconds")
    return True

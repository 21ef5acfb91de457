"""The live view of `turnout runs watch` and `turnout demo`, drawn with rich."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.contracts.plain_text import in_line
from services.contracts.records import Evaluation
from services.contracts.step_metrics import STEP_METRICS
from turnout.cli.output import duration, sparkline
from turnout.cli.views.progress import Progress, evaluation_text, note_text

STATE_STYLES = {
    "running": "green",
    "succeeded": "bold green",
    "failed": "bold red",
    "stopped": "yellow",
    "paused": "yellow",
}
SPARK_WIDTH = 30
"""Fits next to the numbers in an 80-column terminal."""
NOTE_STYLES = {"warning": "yellow", "error": "red", "info": "dim"}


def render(progress: Progress, footer: str) -> RenderableType:
    """The whole view."""
    run = progress.run
    if run is None:
        return Panel(Text(in_line(progress.fault) or "Asking the API ..."), title=Text(in_line(progress.run_id)))
    parts: list[RenderableType] = [_headline(progress), _numbers(progress)]
    parts += [Text(in_line(evaluation_text(item))) for item in _shown_evaluations(progress)]
    parts.append(_services(progress))
    parts += [Text(note_text(note), style=NOTE_STYLES.get(note.get("level", ""), "")) for note in progress.notes[-3:]]
    if progress.fault:
        parts.append(Text(in_line(f"The API is not answering: {progress.fault}"), style="yellow"))
    elif run.reason:
        parts.append(Text(in_line(run.reason), style=STATE_STYLES.get(run.state, "")))
    title = Text(in_line(f"{run.name}  {run.id}"))
    return Panel(Group(*parts), title=title, subtitle=Text(footer), title_align="left", subtitle_align="right")


def _headline(progress: Progress) -> RenderableType:
    run = progress.run
    assert run is not None
    left = progress.seconds_left
    line = Table.grid(padding=(0, 1))
    line.add_row(
        Text(run.state, style=STATE_STYLES.get(run.state, "cyan")),
        Text(f"step {progress.step}/{progress.num_steps}"),
        ProgressBar(total=max(1, progress.num_steps), completed=progress.step, width=40),
        Text(f"{duration(left)} left" if left is not None and not run.has_ended else ""),
    )
    return line


def _numbers(progress: Progress) -> RenderableType:
    rows: dict[str, list[str]] = {}
    for name, metric in STEP_METRICS.items():
        value = progress.metric(name)
        if metric.live is not None and not (metric.optional and value is None):
            row, label = metric.live
            rows.setdefault(row, []).append(f"{label} {metric.text(value)}".strip())
    rewards = [step.metrics["reward_mean"] for step in progress.steps if "reward_mean" in step.metrics]
    rows["reward"].append(sparkline(rewards, SPARK_WIDTH))
    table = Table.grid(padding=(0, 2))
    for row, parts in rows.items():
        table.add_row(row, "  ".join(parts))
    return table


def _shown_evaluations(progress: Progress) -> list[Evaluation]:
    """The first and the newest."""
    items = progress.evaluations
    return items if len(items) < 2 else [items[0], items[-1]]


def _services(progress: Progress) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="dim")
    for name in ("service", "state", "weights", "waits for"):
        table.add_column(name)
    for item in progress.services:
        waits = item.waiting_for
        if waits and item.waiting_since is not None:
            waits += f" ({duration(item.at - item.waiting_since)})"
        weights = "" if item.weight_version is None else str(item.weight_version)
        table.add_row(*map(in_line, (item.instance, item.state, weights, waits)))
    return table

"""Formats results for a terminal: a short text or table for people, JSON for scripts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from services.contracts.plain_text import in_line
from services.contracts.records import Run
from turnout.cli.terminal import bars, console, say, say_error, say_json, say_lines

if TYPE_CHECKING:
    from turnout.cli.run_data import RunData


def show(value: Any, as_json: bool, text: str) -> None:
    """Print a value as JSON or as `text`."""
    if as_json:
        say_json(value, indented=True)
    else:
        say_lines(text)


def show_notices(notices: Sequence[str]) -> None:
    """Print notes about valid but possibly unintended settings to standard error."""
    for notice in notices:
        say_error(f"Note: {notice}")


def show_runs(runs: Sequence[Run], as_json: bool) -> None:
    """Print one line per run."""
    if as_json:
        show(list(runs), True, "")
    elif not runs:
        say("No runs.")
    else:
        rows = [[run.id, run.name, run.state, f"{run.step}/{run.num_steps}", why(run)] for run in runs]
        print_table(["id", "name", "state", "step", "reason"], rows)


def why(run: Run) -> str:
    """Why the run is in its state; for a queued one its place in the queue, and what it waits for."""
    place = run.queue
    if place is None:
        return run.reason
    start = place.starts_in_seconds
    when = "" if start is None or start < 1 else f" Starts in about {duration(start)}."
    return f"{place.position}. in the queue. {place.reason}{when}"


def show_run(data: RunData, as_json: bool) -> None:
    """Print the state, newest metrics, evaluations and checkpoints of one run."""
    if as_json:
        newest = data.steps[-1:]
        show(
            {"run": data.run, "step": newest[0] if newest else None, "evaluations": data.evaluations}
            | {"checkpoints": data.checkpoints},
            True,
            "",
        )
        return
    run = data.run
    reason = why(run)
    say(f"{run.id}  {run.name}: {run.state}; step {run.step}/{run.num_steps}{'; ' + reason if reason else ''}")
    if run.tags:
        say(f"tags: {', '.join(run.tags)}")
    if run.note:
        say_lines(run.note)
    if data.steps:
        values = data.steps[-1].metrics
        print_table(["metric", "value"], [[name, f"{value:.4g}"] for name, value in sorted(values.items())])
    if data.evaluations:
        rows = [
            [str(item.step), item.split, f"{item.accuracy:.1%}", f"{item.pass_at_k:.1%}", str(item.num_questions)]
            for item in data.evaluations
        ]
        samples = data.evaluations[-1].num_samples
        print_table(["step", "split", f"avg@{samples}", f"pass@{samples}", "questions"], rows)
    for checkpoint in data.checkpoints:
        say(f"checkpoint of step {checkpoint.step}: {checkpoint.path}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn in a terminal, tab-separated elsewhere."""
    if not sys.stdout.isatty():
        for row in [header, *rows]:
            say_lines("\t".join(map(in_line, row)))
        return
    from rich.table import Table

    table = Table()
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*map(in_line, row))
    console().print(table)


def quantities(fields: Mapping[str, Any]) -> str:
    """Names and values in a line, numbers short: `step 3  reward_mean 0.41`. Nested values are left out."""
    plain = {name: value for name, value in fields.items() if value != "" and isinstance(value, str | int | float)}
    texts = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in plain.items())
    return "  ".join(texts)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The newest `width` values as little bars, scaled between their minimum and maximum."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    heights = bars()
    return "".join(heights[min(len(heights) - 1, int((value - low) / span * len(heights)))] for value in shown)


def duration(seconds: float) -> str:
    """Seconds in the form 1:02:03 or 2:03."""
    total = max(0, round(seconds))
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

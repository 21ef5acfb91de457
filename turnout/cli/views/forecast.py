"""What an experiment needs by formula, for a terminal or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from services.contracts.experiments.forecast import Forecast, Range
from services.contracts.planner import gib
from turnout.cli import output
from turnout.cli.terminal import say


def show_forecast(found: Sequence[Forecast], machine: str) -> None:
    """Print a table of methods, then totals and what they assume."""
    header = ["phase", "method", "learner", "server", "s a step", "s an evaluation", "h a run", "runs", "h"]
    output.print_table(header, [_row(item) for item in found])
    for sentence in sentences(found, machine):
        say(sentence)


def _row(item: Forecast) -> list[str]:
    evaluation = "?" if item.evaluation_seconds is None else _text(item.evaluation_seconds)
    hours = item.run_hours * item.num_runs
    times = [_text(item.step_seconds), evaluation, _text(item.run_hours), str(item.num_runs), _text(hours)]
    return [item.phase, item.method, gib(item.plan.learner.total), gib(item.plan.server.least), *times]


def _text(span: Range) -> str:
    digits = 0 if span.slow >= 10 else 1
    return f"{span.fast:.{digits}f} to {span.slow:.{digits}f}"


def sentences(found: Sequence[Forecast], machine: str) -> list[str]:
    """Totals, settings that the file lacks, and assumptions."""
    total = sum((item.run_hours * item.num_runs for item in found), Range(0, 0))
    copies = max(item.plan.learner.cpu for item in found)
    disk = sum(item.disk for item in found)
    said = [f"In total {_text(total)} hours ({_text(total * (1 / 24))} days) on {machine}, one run after the other."]
    said.append(f"Ended runs keep {disk / 1e12:.1f} TB until they are deleted. CPU memory for copies: {gib(copies)}.")
    for item in found:
        if item.plan.changes:
            fields = " ".join(f"--set run.{name}={json.dumps(value)}" for name, value in item.plan.changes.items())
            said.append(f"{item.phase} {item.method} does not fit as it is; the row is for {fields}")
    if any(item.evaluation_seconds is None for item in found):
        said.append("Evaluations are left out: their questions are not here, so their number is not known.")
    said.append("Calculated from the data sheet with assumed efficiencies (docs/sizing.md), not measured.")
    return said


def values(found: Sequence[Forecast]) -> list[dict[str, Any]]:
    """The same as JSON, in bytes, seconds and hours."""
    return [
        {
            "phase": item.phase,
            "method": item.method,
            "learner_bytes": item.plan.learner.total,
            "server_bytes": item.plan.server.least,
            "changes": dict(item.plan.changes),
            "step_seconds": asdict(item.step_seconds),
            "evaluation_seconds": None if item.evaluation_seconds is None else asdict(item.evaluation_seconds),
            "run_hours": asdict(item.run_hours),
            "num_runs": item.num_runs,
            "disk_bytes": item.disk,
        }
        for item in found
    ]

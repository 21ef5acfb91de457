"""`turnout runs compare`: several runs in one table and one plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.contracts.errors import ConfigurationError
from services.contracts.step_metrics import STEP_METRICS
from turnout.cli.output import print_table, show
from turnout.cli.run_data import RunData, mean
from turnout.cli.terminal import say
from turnout.cli.views.plots import comparison_plot

_COMPARED = [(name, *metric.compared) for name, metric in STEP_METRICS.items() if metric.compared is not None]


def compare(runs: Sequence[RunData], png: Path, as_json: bool) -> None:
    """Print the table and write the plot. Raises `ConfigurationError` if the plot cannot be written."""
    picture = comparison_plot(runs)
    if picture is not None:
        try:
            png.write_bytes(picture)
        except OSError as error:
            raise ConfigurationError(
                f"The plot cannot be written to {png}: {error.strerror}.", remedy="Choose another path with --png."
            ) from error
    rows = [row_of(data) for data in runs]
    if as_json:
        show({"runs": rows, "png": str(png) if picture is not None else None}, True, "")
        return
    header = list(rows[0])
    print_table(header, [[_cell(row[name]) for name in header] for row in rows])
    say(f"Plot: {png}" if picture is not None else "No steps yet, so no plot.")


def row_of(data: RunData) -> dict[str, Any]:
    """The figures by which runs are compared; None if a run has none."""
    before, after, best = data.first_evaluation, data.last_evaluation, data.best_evaluation
    return {
        "id": data.run.id,
        "name": data.run.name,
        "objective": data.run.objective or data.run.config.get("objective", {}).get("name", ""),
        "state": data.run.state,
        "step": data.run.step,
        "accuracy_before": before.accuracy if before else None,
        "accuracy_after": after.accuracy if after else None,
        "accuracy_best": best.accuracy if best else None,
        "best_step": best.step if best else None,
        **{column: mean(data.series(name)[1][-last:]) for name, column, last in _COMPARED},
    }


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

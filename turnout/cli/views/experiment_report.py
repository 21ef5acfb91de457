"""An experiment's report: `report.md` with its pictures, `report.html` in a single file, and the results as JSON."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from services.contracts.errors import ConfigurationError
from services.contracts.records import Estimate, Experiment, MethodResult, Results
from services.contracts.step_metrics import STEP_METRICS
from turnout.cli.views.plots import COLORS, Plot
from turnout.cli.views.report import STYLE, version_rows
from turnout.cli.views.tables import html_table, markdown_table

Table = list[list[str]]


def write_report(experiment: Experiment, results: Results, folder: Path) -> Path:
    """Write the report to `folder`, creating it if necessary, and return the folder.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    plots = [plot for plot in (_curves(results, by_seconds=False), _curves(results, by_seconds=True)) if plot]
    sections = _sections(experiment, results)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            (folder / f"{plot.name}.png").write_bytes(plot.png)
        (folder / "report.md").write_text(_markdown(experiment, sections, plots), encoding="utf-8")
        (folder / "report.html").write_text(_html(experiment, sections, plots), encoding="utf-8")
        both = {"experiment": experiment, "results": results}
        (folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(both)))
    except OSError as error:
        raise ConfigurationError(
            f"The report cannot be written to {folder}: {error.strerror}.", remedy="Choose another folder with --out."
        ) from error
    return folder


def _sections(experiment: Experiment, results: Results) -> list[tuple[str, str, Table]]:
    """Title, explanation and table of each section."""
    last = experiment.file.get("last_evaluations", 3)
    seeds = ", ".join(map(str, results.seeds))
    interval = "mean [95% interval over seeds]"
    sections = [
        (
            "Results",
            f"avg@k in percent, {interval}; final seeds {seeds}. Columns of budgets give the best evaluation within "
            f"them; the score is the mean of the last {last} evaluations. Seconds are those of training, without "
            f"evaluations.",
            _results_table(results),
        ),
        (
            "Differences",
            f"Score minus that of {results.baseline} with the same seed, in points: {interval}.",
            _differences_table(results),
        ),
    ]
    if results.claims:
        sections.append(
            (
                "Claims",
                "Each claim is that the first quantity is higher than the second. It is shown if the 95% interval of "
                "the paired difference is above 0, opposite if it is below 0, and not shown if it contains 0.",
                _claims_table(results),
            )
        )
    sections.append(("Over time", "Means over all seeds in each fifth of the training steps.", _windows_table(results)))
    if experiment.scores is not None:
        sections.append(
            (
                "Tuning",
                "Mean score over the tuning seeds on the tuning questions; the chosen settings are marked. "
                "The choice was stored before the first final run started.",
                _tuning_table(experiment),
            )
        )
    sections.append(("Inputs and versions", "", _inputs_table(experiment)))
    return sections


def _results_table(results: Results) -> Table:
    first = results.methods[0]
    header = ["method", "before"]
    header += [f"{steps} steps" for steps in first.within_steps]
    header += [f"{seconds} s" for seconds in first.within_seconds]
    header += ["score", "s a step", "collapsed", "missing"]
    rows = [header]
    for item in results.methods:
        budgets = [*item.within_steps.values(), *item.within_seconds.values()]
        row = [item.method, _percent(item.before), *map(_percent, budgets), _percent(item.score)]
        row += [_number(item.seconds_per_step, 2), f"{item.num_collapsed} of {len(results.seeds) - item.num_missing}"]
        rows.append([*row, str(item.num_missing)])
    return rows


def _differences_table(results: Results) -> Table:
    rows = [["method", "difference in points", "seeds ahead", "by seed"]]
    for item in results.methods:
        if item.difference is None:
            continue
        by_seed = ", ".join("-" if value is None else f"{100 * value:+.1f}" for value in item.difference.values)
        num_pairs = sum(value is not None for value in item.difference.values)
        ahead = f"{item.num_ahead} of {num_pairs}"
        rows.append([item.method, _percent(item.difference, sign=True), ahead, by_seed])
    return rows


def _claims_table(results: Results) -> Table:
    rows = [["claim", "verdict", "higher", "lower", "difference"]]
    for claim in results.claims:
        numbers = [_number(item, 3) for item in (claim.higher, claim.lower, claim.difference)]
        rows.append([claim.claim, claim.verdict, *numbers])
    return rows


def _windows_table(results: Results) -> Table:
    rows = [["metric", "method", "1st fifth", "2nd", "3rd", "4th", "5th"]]
    for name in results.methods[0].windows:
        for item in results.methods:
            values = item.windows[name]
            if any(values):  # GRPO has no teacher
                metric = STEP_METRICS.get(name)
                title = metric.title if metric else name
                rows.append([title, item.method, *("-" if value is None else f"{value:.3g}" for value in values)])
    return rows


def _tuning_table(experiment: Experiment) -> Table:
    rows = [["method", "settings", "score", "by seed", ""]]
    points = {(run.method, run.cell.split("/")[2]): run.values for run in experiment.runs if run.phase == "tuning"}
    for method, scores in (experiment.scores or {}).items():
        for index, by_seed in enumerate(scores):
            values = points.get((method, str(index)), {})
            chosen = "chosen" if (experiment.chosen or {}).get(method) == values else ""
            text = ", ".join(f"{field} {value}" for field, value in values.items())
            seeds = ", ".join(f"{100 * score:.1f}" for score in by_seed)
            rows.append([method, text, f"{100 * sum(by_seed) / len(by_seed):.1f}", seeds, chosen])
    return rows


def _inputs_table(experiment: Experiment) -> Table:
    rows = [["", ""], ["experiment", experiment.id], ["file, SHA-256", experiment.digest]]
    rows += [[f"{path}, SHA-256", digest] for path, digest in experiment.inputs.items()]
    failed = [run.run_id or "" for run in experiment.runs if run.state == "failed"]
    rows.append(["failed runs", ", ".join(failed) or "none"])
    return [*rows, *([name, version] for name, version in version_rows())]


def _percent(item: Estimate, *, sign: bool = False) -> str:
    return _format(item, lambda value: f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}")


def _number(item: Estimate, digits: int) -> str:
    return _format(item, lambda value: f"{value:.{digits}f}")


def _format(item: Estimate, text: Callable[[float], str]) -> str:
    if item.mean is None:
        return "-"
    if item.low is None or item.high is None:
        return text(item.mean)
    return f"{text(item.mean)} [{text(item.low)}, {text(item.high)}]"


def _curves(results: Results, *, by_seconds: bool) -> Plot | None:
    """Accuracy of each method, with a band from the lowest to the highest seed. None without evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for item, color in zip(results.methods, _colors(len(results.methods)), strict=True):
        _draw_curve(axes, item, color, by_seconds)
    if not axes.get_lines():
        return None
    axes.set(xlabel="seconds of training" if by_seconds else "training step", ylabel="avg@k on the test questions")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    by = "seconds" if by_seconds else "steps"
    caption = "Line: mean over seeds. Band: from the lowest to the highest seed."
    return Plot(f"accuracy_by_{by}", f"Accuracy by {by}", caption, buffer.getvalue())


def _draw_curve(axes: Any, item: MethodResult, color: str, by_seconds: bool) -> None:
    if not item.curve:
        return
    places = [point.seconds if by_seconds else point.step for point in item.curve]
    axes.plot(places, [point.mean for point in item.curve], "o-", color=color, label=item.method, markersize=3)
    low, high = [point.low for point in item.curve], [point.high for point in item.curve]
    axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _file_text(experiment: Experiment) -> str:
    return yaml.safe_dump(experiment.file, sort_keys=False, allow_unicode=True, width=100)


def _markdown(experiment: Experiment, sections: Sequence[tuple[str, str, Table]], plots: Sequence[Plot]) -> str:
    parts = [f"# {experiment.name}", str(experiment.file.get("description", ""))]
    for index, (title, text, rows) in enumerate(sections):
        parts += [f"## {title}", text, markdown_table(rows)]
        if index == 0:
            parts += [f"![{plot.title}]({plot.name}.png)\n\n{plot.caption}" for plot in plots]
    parts += ["## Experiment file", "As it was stored before the first run.", f"```yaml\n{_file_text(experiment)}```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _html(experiment: Experiment, sections: Sequence[tuple[str, str, Table]], plots: Sequence[Plot]) -> str:
    name = html.escape(experiment.name)
    parts = [f"<h1>{name}</h1>", f"<p>{html.escape(str(experiment.file.get('description', '')))}</p>"]
    for index, (title, text, rows) in enumerate(sections):
        parts += [f"<h2>{html.escape(title)}</h2>", f"<p>{html.escape(text)}</p>", html_table(rows, header=True)]
        for plot in plots if index == 0 else ():
            image = base64.b64encode(plot.png).decode()
            parts.append(
                f'<figure><img alt="{html.escape(plot.title)}" src="data:image/png;base64,{image}">'
                f"<figcaption>{html.escape(plot.caption)}</figcaption></figure>"
            )
    parts.append(f"<h2>Experiment file</h2><pre>{html.escape(_file_text(experiment))}</pre>")
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'

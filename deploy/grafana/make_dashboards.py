"""Writes the Grafana dashboards from the catalogue of step metrics and `dashboards.yaml`.

python deploy/grafana/make_dashboards.py          # write deploy/grafana/dashboards/*.json
python deploy/grafana/make_dashboards.py --check  # exit 1 if they are stale
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from services.contracts.step_metrics import CATALOGUE, StepHistogram, StepMetric

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS = yaml.safe_load(FOLDER.with_suffix(".yaml").read_text())
SOURCE = {"type": "prometheus", "uid": "turnout-prometheus"}
RUN = 'run_id=~"$run"'
UNITS = {"share": "percentunit", "seconds": "s", "GiB": "gbytes"}


def panels(dashboard: str) -> list[dict[str, str]]:
    """A dashboard's panels, in the form of `dashboards.yaml`: first those of the step metrics."""
    found: dict[str, dict[str, str]] = {}
    for item in CATALOGUE:
        made = histogram_panel(item) if isinstance(item, StepHistogram) else gauge_panel(item)
        if made and made["dashboard"] == dashboard:
            found[made["title"]] = made
    return [*found.values(), *DASHBOARDS[dashboard]["panels"]]


def gauge_panel(metric: StepMetric) -> dict[str, str] | None:
    """The panel of the gauge that shows a metric, if it has one."""
    family = metric.family
    if family is None or family.panel is None:
        return None
    legend = family.legend or " ".join(f"{{{{{label}}}}}" for label in ("run_id", *family.labels))
    shown = {"of": family.name, "legend": legend, "unit": UNITS.get(family.unit, "none")}
    return {"title": family.title, **shown, **asdict(family.panel)}


def histogram_panel(histogram: StepHistogram) -> dict[str, str]:
    return {"title": histogram.title, "quantiles": histogram.name, **asdict(histogram.panel)}


def queries(panel: dict[str, str]) -> list[tuple[str, str]]:
    """A panel's queries and their legends."""
    if "quantiles" in panel:
        by, name = panel.get("by", "run_id"), panel["quantiles"]
        scope = RUN if by == "run_id" else f'{by}!=""'
        inner = f"sum by ({by}, le) (rate(turnout_{name}_bucket{{{scope}}}[5m]))"
        return [(f"histogram_quantile({q}, {inner})", f"{{{{{by}}}}} p{round(q * 100)}") for q in (0.5, 0.95)]
    query = panel["query"].replace("RUN", RUN) if "query" in panel else f"turnout_{panel['of']}{{{RUN}}}"
    return [(query, panel.get("legend", "{{run_id}}"))]


def panel_json(panel: dict[str, str], number: int) -> dict[str, Any]:
    """Grafana's form of one panel; two panels per row."""
    kind = panel.get("kind", "timeseries")
    return {
        "id": number + 1,
        "type": kind,
        "title": panel["title"],
        "description": panel["text"],
        "datasource": SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {"defaults": {"unit": panel.get("unit", "none")}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}} if kind == "timeseries" else {},
        "targets": [
            {"refId": chr(65 + index), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for index, (expression, legend) in enumerate(queries(panel))
        ],
    }


def dashboard_json(name: str) -> str:
    """One dashboard file."""
    query = "label_values(turnout_run_info, run_id)"
    variable = {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "run"},
        "definition": query,
        "refresh": 2,
        "sort": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
    board = {
        "uid": f"turnout-{name}",
        "title": DASHBOARDS[name]["title"],
        "tags": ["turnout"],
        "schemaVersion": 41,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "links": [
            {"type": "dashboards", "tags": ["turnout"], "title": "Turnout", "asDropdown": True, "keepTime": True}
        ],
        "templating": {"list": [variable]},
        "panels": [panel_json(panel, number) for number, panel in enumerate(panels(name))],
    }
    return json.dumps(board, indent=1) + "\n"


def main() -> int:
    """Write or check the files; the exit code says whether they were up to date."""
    FOLDER.mkdir(exist_ok=True)
    wrong = [name for name in DASHBOARDS if not _same(FOLDER / f"{name}.json", dashboard_json(name))]
    if "--check" in sys.argv:
        if wrong:
            print(f"Stale: {', '.join(wrong)}. Run deploy/grafana/make_dashboards.py and commit.")
        return int(bool(wrong))
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(dashboard_json(name))
    return 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())

"""The catalogue of step metrics as JSON, which the page reads from a data block in its HTML."""

from __future__ import annotations

import json
from dataclasses import asdict

from services.contracts.step_metrics import CHARTS, STEP_METRICS, lines


def catalogue() -> str:
    """JSON that is safe inside a `<script>` element."""
    metrics = [{"name": name, "title": metric.title, "unit": metric.unit} for name, metric in STEP_METRICS.items()]
    charts = [
        asdict(chart) | {"lines": [{"metric": metric.name, **asdict(line)} for metric, line in lines(chart)]}
        for chart in CHARTS
    ]
    return json.dumps({"metrics": metrics, "charts": charts}, separators=(",", ":")).replace("<", "\\u003c")

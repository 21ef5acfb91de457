"""The catalogue of step metrics: every chart, dashboard and metric that a record names exists, and names are unique."""

from __future__ import annotations

from collections import Counter

import yaml

from services.contracts.step_metrics import CATALOGUE, CHARTS, STEP_METRICS, StepHistogram, families, lines
from tests.conftest import ROOT


def repeated(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def test_no_name_and_no_title_is_used_twice() -> None:
    assert repeated([item.name for item in CATALOGUE]) == []
    assert repeated([metric.title for metric in STEP_METRICS.values()]) == []
    columns = [metric.compared[0] for metric in STEP_METRICS.values() if metric.compared]
    assert repeated(columns) == []


def test_every_chart_has_lines_and_every_line_a_chart() -> None:
    assert [chart.key for chart in CHARTS if not lines(chart)] == []
    keys = {chart.key for chart in CHARTS}
    assert [name for name, metric in STEP_METRICS.items() if metric.line and metric.line.chart not in keys] == []
    named = {chart.rest_of for chart in CHARTS} | {
        metric.line.only_if for metric in STEP_METRICS.values() if metric.line
    }
    assert named - {""} <= STEP_METRICS.keys()


def test_every_panel_names_an_existing_dashboard() -> None:
    dashboards = yaml.safe_load((ROOT / "deploy/grafana/dashboards.yaml").read_text())
    panels = [item.panel for item in CATALOGUE if isinstance(item, StepHistogram)]
    panels += [family.panel for family in families() if family.panel]
    assert {panel.dashboard for panel in panels} <= dashboards.keys()


def test_a_gauge_of_several_metrics_tells_them_apart_by_its_labels() -> None:
    for family, metrics in families().items():
        assert all(len(metric.labels) == len(family.labels) for metric in metrics), family.name
        assert len({metric.labels for metric in metrics}) == len(metrics), family.name


def test_values_have_their_unit() -> None:
    assert STEP_METRICS["policy_entropy_nats"].text(0.25) == "0.250 nats"
    assert STEP_METRICS["routing_ratio_grpo"].text(0.6) == "0.60"
    assert STEP_METRICS["seconds"].text(None) == "-"

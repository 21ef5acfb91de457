"""What we ship for Prometheus and Grafana is valid and says what its sources say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.ring.prometheus import RULES, binary

DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))


@pytest.mark.parametrize("arguments", [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]])
def test_rules_are_valid_and_alert_when_they_should(arguments: list[str]) -> None:
    result = subprocess.run([binary("promtool"), *arguments], cwd=RULES, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_a_test() -> None:
    rules = yaml.safe_load((RULES / "rules.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    tests = yaml.safe_load((RULES / "rules_test.yml").read_text())["tests"]
    tested = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert alerts == tested


def test_every_alert_has_its_section_in_the_runbook() -> None:
    rules = yaml.safe_load((RULES / "rules.yml").read_text())
    found = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    alerts = {rule["alert"]: rule["annotations"] for rule in found}
    page = (ROOT / "docs" / "runbook.md").read_text()
    sections = page.partition("\n## Alerts\n")[2].partition("\n## ")[0].split("\n### ")[1:]
    asked = {section.partition("\n")[0]: section.partition("\n")[2] for section in sections}
    assert asked.keys() == alerts.keys()
    for alert, says in alerts.items():
        assert says["summary"], alert
        assert says["remedy"], alert
        assert says["runbook"] == f"docs/runbook.md#{alert.lower()}"
        assert len(asked[alert].strip()) > 150, alert


def test_dashboards_are_what_their_tables_say() -> None:
    program = ROOT / "deploy" / "grafana" / "make_dashboards.py"
    assert subprocess.run([sys.executable, str(program), "--check"]).returncode == 0


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_how_to_read_it(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["panels"]
    for panel in board["panels"]:
        assert len(panel["description"]) > 20, panel["title"]

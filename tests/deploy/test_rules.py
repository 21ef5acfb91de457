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


def test_every_alert_names_its_remedy() -> None:
    rules = yaml.safe_load((RULES / "rules.yml").read_text())
    page = (ROOT / "docs" / "operations.md").read_text()
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert {"summary", "remedy"} <= set(rule["annotations"])
                assert f"| `{rule['alert']}`" in page


def test_dashboards_are_what_their_tables_say() -> None:
    program = ROOT / "deploy" / "grafana" / "make_dashboards.py"
    assert subprocess.run([sys.executable, str(program), "--check"]).returncode == 0


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_how_to_read_it(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["panels"]
    for panel in board["panels"]:
        assert len(panel["description"]) > 20, panel["title"]

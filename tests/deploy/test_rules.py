"""What we ship for Prometheus and Grafana is valid and says what its sources say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from services.runtime.settings import Settings
from services.verifier.settings import EndpointSettings
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


def test_compose_mounts_what_exists() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / "deploy" / source).exists(), source
        for option in service.get("security_opt", []):
            assert (ROOT / "deploy" / option.removeprefix("seccomp=")).exists(), option


def test_who_runs_strangers_programs_sees_neither_files_nor_database() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    verifier = services["verifier"]
    assert verifier["volumes"] == []
    assert not set(verifier["networks"]) & set(services["postgres"]["networks"])
    assert not {"TURNOUT_API_KEY", "PGPASSWORD"} & verifier["environment"].keys()


def test_compose_files_set_variables_that_services_read() -> None:
    rewards = {f"TURNOUT_REWARD_{name.upper()}" for name in EndpointSettings.model_fields}
    elsewhere = {"OMP_NUM_THREADS", "PGPASSWORD", *rewards}
    for path in (ROOT / "deploy").glob("compose*.yaml"):
        compose = yaml.load(path.read_text(), ComposeLoader)
        for name, service in compose["services"].items():
            if "turnout" in service.get("image", ""):
                unknown = {
                    variable
                    for variable in service.get("environment", {})
                    if variable.removeprefix("TURNOUT_").lower() not in Settings.model_fields
                }
                assert unknown <= elsewhere, f"{path.name}: {name}"


def test_the_compose_file_for_cpus_changes_services_that_exist() -> None:
    base = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    cpu = yaml.load((ROOT / "deploy" / "compose.cpu.yaml").read_text(), ComposeLoader)["services"]
    ours = {name for name, service in base.items() if service["image"].startswith("turnout")}
    assert cpu.keys() == ours
    for name in ours:
        assert cpu[name]["image"] != base[name]["image"]
        assert ("deploy" in base[name]) == ("deploy" in cpu[name])


class ComposeLoader(yaml.SafeLoader):
    """Reads Compose's own tag, which takes a value of the file before it back."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)

"""What can be said of the Compose deployment without an engine; `make test-deploy` has the rest."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.contracts.queue_users import USERS
from services.runtime.settings import Settings
from services.verifier.settings import EndpointSettings, JudgeEndpointSettings
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


class ComposeLoader(yaml.SafeLoader):
    """Reads Compose's own tag, which takes a value of the file before it back."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secrets.sh").write_bytes((DEPLOY / "secrets.sh").read_bytes())
    return tmp_path


def secrets_sh(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", folder / "secrets.sh", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["logging"]["options"]["max-size"]
    assert service["pids_limit"]


def test_only_the_verifier_and_the_proxy_have_capabilities() -> None:
    given = {name: service["cap_add"] for name, service in SERVICES.items() if "cap_add" in service}
    assert given == {"verifier": ["SETUID", "SETGID", "KILL"], "caddy": ["NET_BIND_SERVICE"]}


def test_the_verifier_has_no_files_and_one_network() -> None:
    verifier = SERVICES["verifier"]
    assert "volumes" not in verifier
    assert verifier["networks"] == ["judge"]
    assert COMPOSE["networks"]["judge"]["internal"]


def test_the_judge_is_reached_by_a_relay_and_the_verifier_keeps_its_network() -> None:
    services = yaml.safe_load((DEPLOY / "compose.judge.yaml").read_text())["services"]
    relay = services["judge-relay"]
    assert "networks" not in services["verifier"]
    assert relay["networks"] == ["judge", "outside"]
    assert "volumes" not in relay
    assert "secrets" not in relay
    assert relay["read_only"]
    assert relay["cap_drop"] == ["ALL"]


def test_no_secret_is_a_variable() -> None:
    for name, service in SERVICES.items():
        for variable in service.get("environment", {}):
            is_file = variable.endswith(("_FILE", "_PATH", "_FOLDER"))
            assert is_file or not re.search("KEY|TOKEN|PASSWORD", variable), (name, variable)


def test_compose_mounts_what_exists() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (DEPLOY / source).exists(), source
        for option in service.get("security_opt", []):
            if option.startswith("seccomp="):
                assert (DEPLOY / option.removeprefix("seccomp=")).exists(), option


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("compose*.yaml")), ids=lambda path: path.stem)
def test_compose_files_set_variables_that_services_read(path: Path) -> None:
    known = {f"TURNOUT_{name.upper()}" for name in Settings.model_fields} | {"TURNOUT_SECRETS_FOLDER"}
    known |= {f"TURNOUT_REWARD_{name.upper()}" for name in EndpointSettings.model_fields}
    known |= {f"TURNOUT_JUDGE_{name.upper()}" for name in JudgeEndpointSettings.model_fields}
    for service in yaml.load(path.read_text(), ComposeLoader)["services"].values():
        ours = {name for name in service.get("environment", {}) if name.startswith("TURNOUT_")}
        assert ours <= known


def test_the_compose_file_for_cpus_changes_what_wants_a_gpu() -> None:
    cpu = yaml.load((DEPLOY / "compose.cpu.yaml").read_text(), ComposeLoader)["services"]
    assert cpu.keys() == {name for name, service in SERVICES.items() if "resources" in service.get("deploy", {})}
    for service in cpu.values():
        assert service["image"] == "turnout-torch:cpu"


def test_what_the_example_of_the_environment_names_is_used() -> None:
    text = "".join(path.read_text() for path in DEPLOY.glob("compose*.yaml"))
    named = re.findall(r"^([A-Z_]+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE)
    assert [name for name in named if f"${{{name}" not in text] == []


def test_secrets_sh_makes_every_secret_that_compose_names(folder: Path) -> None:
    made = secrets_sh(folder)
    assert made.returncode == 0, made.stderr
    secrets = folder / "secrets"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()} == {
        path.name for path in secrets.iterdir()
    }
    assert {f"queue_{user}" for user in USERS} <= {path.name for path in secrets.iterdir()}
    given = ("reward_token", "judge_key", "hf_token", "tracker")
    texts = [path.read_text() for path in secrets.iterdir() if path.name not in given]
    assert len(set(texts)) == len(texts)
    assert all(len(text) >= 32 for text in texts)


def test_secrets_sh_leaves_what_is_there_and_takes_an_older_deployments(folder: Path) -> None:
    (folder / ".env").write_text("TURNOUT_API_KEY=the key of before\nPOSTGRES_PASSWORD=p@ss/word\n")
    secrets_sh(folder)
    assert (folder / "secrets/api_key").read_text() == "the key of before"
    assert (
        folder / "secrets/database_url"
    ).read_text() == "postgresql+psycopg://turnout:p%40ss%2Fword@postgres/turnout"
    before = {path.name: path.read_text() for path in (folder / "secrets").iterdir()}
    secrets_sh(folder)
    assert {path.name: path.read_text() for path in (folder / "secrets").iterdir()} == before


def test_secrets_sh_rotates_one_in_place(folder: Path) -> None:
    secrets_sh(folder)
    file = folder / "secrets" / "read_key"
    before, inode = file.read_text(), file.stat().st_ino
    said = secrets_sh(folder, "rotate", "read_key")
    assert "Restart: api prometheus" in said.stdout
    assert file.read_text() != before
    assert file.stat().st_ino == inode, "containers have the file itself mounted"
    refused = secrets_sh(folder, "rotate", "nothing")
    assert refused.returncode == 1
    assert "there is no secret 'nothing'" in refused.stderr

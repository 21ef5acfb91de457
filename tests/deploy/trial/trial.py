"""The Compose deployment, tried on a real Docker engine: `make test-deploy`. One line a check, and a verdict.

Works on a copy of the checkout, under the project name turnout-trial and ports of its own, so that a deployment on the
same engine is not touched. Without a GPU: compose.cpu.yaml.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(os.environ.get("TRIAL", "/var/tmp/turnout-trial"))
SOURCE = HERE / "source"
PROJECT = "turnout-trial"
PORTS = {"API": 28400, "GRAFANA": 23000, "PROMETHEUS": 29090, "HTTPS": 28443}
API = f"http://127.0.0.1:{PORTS['API']}"
PROMETHEUS = f"http://127.0.0.1:{PORTS['PROMETHEUS']}"
FILES = ["-f", "deploy/compose.yaml", "-f", "deploy/compose.cpu.yaml"]
PRIVATE = os.environ.get("DOCKER_HOST") == f"unix://{HERE}/run/docker.sock"
"""Whether the engine is the one that engine.sh started, which believes that it has NVIDIA's hook."""
OURS = ("api", "verifier", "rollout", "learner")
LAYERS = 10


def sh(*command: str, limit: float = 300, env: dict[str, str] | None = None, merge: bool = False) -> str:
    """Standard output of a command in the copy, with `merge` its standard error too. Raises `AssertionError` with its
    last lines if it fails."""
    done = subprocess.run(
        command,
        cwd=SOURCE,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merge else subprocess.PIPE,
        text=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command[:6])}: {(done.stderr or done.stdout).strip()[-600:]}"
    return done.stdout


def compose(*command: str, limit: float = 300, env: dict[str, str] | None = None) -> str:
    return sh("docker", "compose", "-p", PROJECT, *FILES, *command, limit=limit, env=env)


def containers(service: str) -> list[str]:
    return compose("ps", "-q", service).split()


def inspect(container: str) -> Any:
    return json.loads(sh("docker", "inspect", container))[0]


def inside(service: str, program: str) -> str:
    """What a Python program prints in a service's container."""
    return compose("exec", "-T", service, "python", "-c", program)


def key(name: str) -> str:
    return (SOURCE / "deploy" / "secrets" / name).read_text()


def get(url: str, body: Any = None, key: str = "") -> Any:
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        text = answer.read().decode()
    return json.loads(text) if text.startswith(("{", "[")) else text


def api(path: str, body: Any = None) -> Any:
    return get(API + path, body, key("api_key"))


def status(url: str, body: Any = None, key: str = "") -> int:
    try:
        get(url, body, key)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def until(what: str, holds: Callable[[], Any], seconds: float) -> Any:
    """Wait until something holds; faults of a service that is starting count as not yet."""
    deadline, last = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            if found := holds():
                return found
        except (AssertionError, OSError, KeyError, ValueError) as error:
            last = f" ({error})"
        time.sleep(0.5)
    raise AssertionError(f"Timed out after {seconds:.0f} s waiting for {what}{last}")


def start_run(rewards: Any = None, **changes: Any) -> str:
    config = yaml.safe_load((SOURCE / "examples/runs/demo.yaml").read_text())
    if rewards is not None:
        config["rewards"] = rewards
    config["evaluation"] |= {"before_training": False, "every_steps": 1000}
    config["checkpoint"] |= {"every_steps": 5}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return str(api("/v1/runs", config)["id"])


def step(run: str) -> int:
    return int(api(f"/v1/runs/{run}")["step"])


def moves(run: str, seconds: float = 300) -> None:
    before = until("the run's step", lambda: step(run) + 1, 60) - 1
    until(f"step {before + 2} of {run}", lambda: step(run) >= before + 2, seconds)


def succeeds(run: str, steps: int, seconds: float = 400) -> None:
    def ended() -> bool:
        found = api(f"/v1/runs/{run}")
        assert found["state"] not in ("failed", "stopped"), found["reason"]
        return bool(found["state"] == "succeeded")

    try:
        until(f"{run} to succeed", ended, seconds)
    except AssertionError:
        print("      ", {name: api(f"/v1/runs/{run}")[name] for name in ("state", "reason", "step")})
        raise
    page = api(f"/v1/runs/{run}/steps?limit=1000")
    assert [item["step"] for item in page["items"]] == list(range(1, steps + 1)), "its history has gaps"


# --- before anything runs -------------------------------------------------------------------------------------------


def copy_the_checkout() -> None:
    """What git would take, and what an operator has next to it: secrets, a model, data."""
    sh("docker", "compose", "-p", PROJECT, "down", "--volumes")  # of a trial that failed
    shutil.rmtree(SOURCE)
    SOURCE.mkdir(parents=True)
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(
        ["tar", "-c", "--null", "-T", "-", "--ignore-failed-read"],
        cwd=ROOT,
        input=names,
        stdout=(HERE / "source.tar").open("wb"),
        stderr=subprocess.DEVNULL,
        check=True,
    )
    subprocess.run(["tar", "-x", "-f", str(HERE / "source.tar")], cwd=SOURCE, check=True)
    (HERE / "source.tar").unlink()
    sh("git", "init", "-q")
    lines = [f"{name}_ADDRESS=127.0.0.1:{port}" for name, port in PORTS.items()]
    (SOURCE / "deploy/.env").write_text("\n".join([*lines, "MARK=canary-in-the-env-file", ""]))
    for folder in ("models", "datasets", "deploy/models"):
        (SOURCE / folder).mkdir()
        (SOURCE / folder / "canary.bin").write_bytes(secrets.token_bytes(20 << 20))
    sh("deploy/secrets.sh")


def git_ignores_what_is_the_operators() -> None:
    for name in ("deploy/.env", "deploy/secrets/api_key", "models/canary.bin", "datasets/canary.bin"):
        sh("git", "check-ignore", "-q", name)


def the_configuration_is_sound() -> None:
    compose("--profile", "tls", "--profile", "alerts", "config", "-q")
    sh("docker", "compose", "-f", "deploy/compose.yaml", "config", "-q")
    reward = ["-f", "deploy/compose.yaml", "-f", "deploy/compose.reward.yaml", "config", "-q"]
    sh("docker", "compose", *reward, env={"TURNOUT_REWARD_URL": "http://judge"})
    judge = ["-f", "deploy/compose.yaml", "-f", "deploy/compose.judge.yaml", "config", "-q"]
    sh("docker", "compose", *judge, env={"JUDGE_UPSTREAM": "http://judge", "JUDGE_MODEL": "judge"})


def images() -> dict[str, str]:
    rows = sh("docker", "images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}", "--filter", "reference=turnout-*")
    return dict(row.split() for row in rows.splitlines() if "trial" not in row)


def they_are_built() -> None:
    dangling = set(sh("docker", "images", "-qf", "dangling=true").split())
    compose("build", limit=1500)
    left = set(sh("docker", "images", "-qf", "dangling=true").split()) - dangling
    # What had the tags before loses them.
    assert len(left) <= 2, f"{len(left)} dangling images"
    print("      ", images())


def a_change_of_code_is_built_in_seconds() -> None:
    with (SOURCE / "services/contracts/codec.py").open("a") as file:
        file.write("# changed\n")
    began = time.monotonic()
    done = subprocess.run(
        ["docker", "compose", "-p", PROJECT, *FILES, "--progress", "plain", "build"],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout + done.stderr
    assert said.count("CACHED") >= 6, "the packages were installed again"
    print(f"       {time.monotonic() - began:.1f} s")


def images_hold_nothing_of_the_operators() -> None:
    for image in images():
        found = sh(
            "docker",
            "run",
            "--rm",
            "--network=none",
            image,
            "find",
            "/opt/turnout",
            "-xdev",
            "-not",
            "-path",
            "*/.venv/*",
        )
        wrong = [
            line for line in found.splitlines() if "canary" in line or "/secrets" in line or line.endswith("/.env")
        ]
        assert not wrong, wrong


def images_are_labelled_and_list_their_packages() -> None:
    for image in images():
        labels = inspect(image)["Config"]["Labels"]
        assert labels["org.opencontainers.image.licenses"] == "Apache-2.0", labels
        listed = json.loads(sh("docker", "run", "--rm", "--network=none", image, "cat", "sbom.cdx.json"))
        names = {part["name"] for part in listed["components"]}
        assert "pydantic" in names, names
        assert ("torch" in names) == ("torch" in image), image


def environment(container: str) -> list[str]:
    """Of a container's service; empty while there is none."""
    program = "test ! -f /tmp/service.pid || cat /proc/$(cat /tmp/service.pid)/environ"
    return sh("docker", "exec", container, "sh", "-c", program).split("\0")


def cuda_devices(container: str) -> str:
    """`CUDA_VISIBLE_DEVICES` of a container's service; empty while it has none."""
    found = [line.partition("=")[2] for line in environment(container) if line.startswith("CUDA_VISIBLE_DEVICES=")]
    return found[0] if found else ""


def gpus_go_where_the_env_file_says() -> None:
    """compose.yaml without compose.cpu.yaml, with the images for CPUs. The private engine hands out GPUs as one with
    NVIDIA's toolkit does, but there are none behind it; elsewhere the engine is not asked for GPUs."""
    service: dict[str, Any] = {"image": "turnout-torch:cpu", "pull_policy": "never"}
    service["ulimits"] = {"memlock": 1 << 20}  # to raise it takes a capability that not every machine gives to root
    if not PRIVATE:
        service["deploy"] = {"resources": {"reservations": {"devices": []}}}
    override = {"services": {"rollout": service, "learner": service}}
    (SOURCE / "deploy/gpus.yaml").write_text(yaml.safe_dump(override))
    gpus_go("0,1,2", "3,4", {"0,3", "1,3", "2,3"}, servers_too_many=1)
    gpus_go("4,1", "0", {"4,0", "1,0"})
    gpus_go("0", "0", {"0"})


def gpus_go(rollout: str, learner: str, expected: set[str], servers_too_many: int = 0) -> None:
    """A server per GPU of `rollout`: their CUDA devices are those expected, and the learner's are `learner`."""
    command = ["docker", "compose", "-p", PROJECT, "-f", "deploy/compose.yaml", "-f", "deploy/gpus.yaml"]
    servers = len(expected) + servers_too_many
    env = {"ROLLOUT_GPUS": rollout, "LEARNER_GPUS": learner, "ROLLOUT_SERVERS": str(servers)}
    sh(*command, "up", "--detach", "--no-build", "rollout", "learner", env=env)
    seen: dict[str, str] = {}

    def all_seen() -> bool:
        for container in containers("rollout") + containers("learner"):
            if container not in seen and (devices := cuda_devices(container)):
                seen[container] = devices
        return len(seen) == len(expected) + 1

    until("services with GPUs", all_seen, 60)
    at_learner = seen.pop(containers("learner")[0])
    assert (set(seen.values()), at_learner) == (expected, learner), (seen, at_learner)
    for container in seen:
        given = "NVIDIA_VISIBLE_DEVICES=all" in environment(container)
        assert given == PRIVATE, environment(container)
    if servers_too_many:
        refused = "other rollout servers have all of these"
        until("the last server's words", lambda: refused in sh(*command, "logs", "rollout"), 30)
    sh(*command, "down", "--volumes")


# --- up -------------------------------------------------------------------------------------------------------------


def up(*more: str) -> None:
    compose("up", "--detach", "--wait", *more, limit=300)


def containers_have_no_rights() -> None:
    for container in compose("ps", "-q").split():
        found = inspect(container)
        name, host = found["Config"]["Labels"]["com.docker.compose.service"], found["HostConfig"]
        assert host["ReadonlyRootfs"], name
        assert "ALL" in host["CapDrop"], name
        assert any("no-new-privileges" in option for option in host["SecurityOpt"]), name
        assert host["PidsLimit"], name
        assert host["LogConfig"]["Config"].get("max-size"), name
        if name != "verifier":
            assert found["Config"]["User"].split(":")[0] not in ("", "0", "root"), name
            assert not host["CapAdd"], name
        shown = json.dumps([found["Config"]["Env"], found["Args"], found["Config"]["Cmd"]])
        values = [path.read_text() for path in (SOURCE / "deploy/secrets").iterdir() if path.stat().st_size > 30]
        assert not any(value in shown for value in values), f"{name} shows a secret"


CONNECT = """
import socket
for name, port in %r:
    try:
        socket.create_connection((name, port), timeout=2).close()
        print(name)
    except OSError:
        pass
"""


def the_verifier_reaches_no_further_than_its_network() -> None:
    gateway = json.loads(sh("docker", "network", "inspect", f"{PROJECT}_judge"))[0]["IPAM"]["Config"][0].get("Gateway")
    places = [
        ("valkey", 6379),
        ("api", 8400),
        ("prometheus", 9090),
        ("postgres", 5432),
        ("learner", 8401),
        ("rollout", 8401),
        ("grafana", 3000),
        ("9.9.9.9", 53),
    ]
    reached = inside("verifier", CONNECT % ([*places, (gateway or "10.0.0.1", PORTS["API"])],)).split()
    assert reached == ["valkey", "api", "prometheus"], reached


def services_reach_nothing_beyond_their_own() -> None:
    assert inside("api", CONNECT % ([("valkey", 6379), ("postgres", 5432), ("9.9.9.9", 53)],)).split() == [
        "valkey",
        "postgres",
    ]
    assert inside("learner", CONNECT % ([("valkey", 6379), ("postgres", 5432)],)).split() == ["valkey"]


QUEUE = """
import redis
url = open("/run/secrets/turnout_redis_url").read()
for client, command in [
    (redis.Redis(host="valkey"), ["PING"]),
    (redis.Redis.from_url(url), ["PING"]),
    (redis.Redis.from_url(url), ["GET", "turnout:{any}:config"]),
    (redis.Redis.from_url(url), ["CONFIG", "GET", "*"]),
    (redis.Redis.from_url(url), ["FLUSHALL"]),
]:
    try:
        print(client.execute_command(*command))
    except redis.RedisError as error:
        print(type(error).__name__)
"""


def the_queue_server_knows_its_users() -> None:
    said = inside("verifier", QUEUE).split()
    assert said == ["AuthenticationError", "True", *["NoPermissionError"] * 3], said


SIGN_IN = """
import psycopg
try:
    psycopg.connect(host="postgres", user="turnout", password=%r, connect_timeout=5)
    print("in")
except psycopg.OperationalError as error:
    print("refused" if "password authentication failed" in str(error) else error)
"""


def sign_in(password: str) -> str:
    """What PostgreSQL answers to the API's user."""
    return inside("api", SIGN_IN % password).strip()


def postgresql_has_no_default_password() -> None:
    assert sign_in("turnout") == "refused"
    assert sign_in(key("postgres_password")) == "in"


def the_sandbox_has_all_its_layers() -> None:
    [record] = [item for item in api("/v1/services")["items"] if item["kind"] == "verifier"]
    assert len(record["details"]["sandbox"].split(", ")) == LAYERS, record["details"]


def attacks_are_contained_in_the_verifiers_container() -> None:
    module = "tests.services.verifier.sandbox.as_user"
    mount = f"{SOURCE}/tests:/opt/turnout/tests:ro"
    said = compose("run", "--rm", "-T", "--no-deps", "-v", mount, "verifier", "python", "-m", module, limit=300)
    report = json.loads(said.splitlines()[-1])
    assert len(report["layers"]) == LAYERS, report["layers"]
    for mode in ("bare", "isolated"):
        assert len(report[mode]) > 150
        escaped = {name: problems for name, problems in report[mode].items() if problems}
        assert not escaped, escaped


def keys_open_what_they_should() -> None:
    assert status(f"{API}/v1/runs") == 401
    assert status(f"{API}/v1/runs", key=key("read_key")) == 200
    assert status(f"{API}/v1/runs", body={}, key=key("read_key")) == 403
    assert "<html" in get(f"{API}/").lower()


def targets(expected: int) -> bool:
    found = get(f"{PROMETHEUS}/api/v1/targets")["data"]["activeTargets"]
    down = [(item["scrapeUrl"], item["lastError"]) for item in found if item["health"] != "up"]
    assert not down, down
    assert len(found) == expected, len(found)
    return True


def prometheus_sees_everything() -> None:
    until("4 targets", lambda: targets(4), 60)

    def healthy() -> bool:
        groups = get(f"{PROMETHEUS}/api/v1/rules")["data"]["groups"]
        return all(rule["health"] == "ok" for group in groups for rule in group["rules"])

    until("the rules", healthy, 60)


# --- runs -----------------------------------------------------------------------------------------------------------


def scaled_services_have_names_of_their_own() -> None:
    up("--scale", "rollout=2", "--scale", "verifier=2")
    until("6 targets", lambda: targets(6), 60)
    until("6 names", lambda: len(api("/v1/services")["items"]) == 6, 30)


def two_runs_succeed_with_two_servers() -> None:
    first, second = (start_run(training__steps=20, rollout__num_servers=2) for _ in range(2))
    succeeds(first, 20)
    succeeds(second, 20)


def kill(container: str) -> None:
    """SIGKILL from outside, which the engine takes for a crash."""
    sh("docker", "exec", "-u", "0", container, "true")
    os.kill(int(inspect(container)["State"]["Pid"]), 9)


def killed_containers_come_back() -> None:
    run = start_run(training__steps=400)
    until("the run to move", lambda: step(run) >= 5, 300)
    for service in ("verifier", "rollout", "api", "valkey", "postgres", "learner"):
        began = time.monotonic()
        kill(containers(service)[0])
        moves(run)
        print(f"       {service}: the run moved on after {time.monotonic() - began:.1f} s")
    api(f"/v1/runs/{run}/stop", {})
    until("the run to stop", lambda: api(f"/v1/runs/{run}")["state"] == "stopped", 180)


def a_hung_service_is_started_again() -> None:
    [container] = containers("verifier")[:1]
    before = inspect(container)["RestartCount"]
    inside("verifier", "import os, signal; os.kill(int(open('/tmp/service.pid').read()), signal.SIGSTOP)")
    began = time.monotonic()
    until("the restart", lambda: inspect(container)["RestartCount"] > before, 120)
    print(f"       {time.monotonic() - began:.0f} s")


def logs_are_json() -> None:
    wrong, events = [], Counter[str]()
    for container in (container for service in OURS for container in containers(service)):
        for line in sh("docker", "logs", container, merge=True).splitlines():
            try:
                events[json.loads(line)["event"][:60]] += 1
            except (ValueError, KeyError):
                wrong.append(line)
    assert not wrong, wrong[:5]
    print("      ", events.most_common(5))


def a_rotated_key_reaches_prometheus() -> None:
    old = key("read_key")
    sh("deploy/secrets.sh", "rotate", "read_key")
    compose("restart", "api", "prometheus")
    until("the API", lambda: status(f"{API}/v1/runs", key=key("read_key")) == 200, 60)
    assert status(f"{API}/v1/runs", key=old) == 401
    time.sleep(6)  # a scrape or more
    until("the targets", lambda: targets(6), 60)


def a_rotated_queue_password_works() -> None:
    sh("deploy/secrets.sh", "rotate", "queue_verifier")
    compose("run", "--rm", "-T", "queue-users")
    compose("restart", "valkey", "verifier")
    until(
        "two verifiers",
        lambda: len([1 for item in api("/v1/services")["items"] if item["kind"] == "verifier"]) == 2,
        60,
    )


def the_other_secrets_rotate() -> None:
    """As docs/runbook.md says: the API's key, the services' token, PostgreSQL's password."""
    old = {name: key(name) for name in ("api_key", "service_token", "postgres_password")}
    for name in old:
        sh("deploy/secrets.sh", "rotate", name)
    change = f"ALTER USER turnout PASSWORD '{key('postgres_password')}'"
    compose("exec", "-T", "postgres", "psql", "-h", "127.0.0.1", "-U", "turnout", "-c", change)
    compose("restart", "api", "rollout", "verifier", "learner", "prometheus")
    until("the API", lambda: status(f"{API}/v1/runs", key=key("api_key")) == 200, 90)
    assert status(f"{API}/v1/runs", key=old["api_key"]) == 401
    assert sign_in(old["postgres_password"]) == "refused"
    until("the targets", lambda: targets(6), 90)


# --- profiles, backup -----------------------------------------------------------------------------------------------


def tls_by_profile() -> None:
    compose("--profile", "tls", "up", "--detach", "--no-deps", "caddy")
    url = f"https://localhost:{PORTS['HTTPS']}/readyz"
    until("Caddy", lambda: "ready" in sh("curl", "-sS", "-k", "--max-time", "5", url), 60)


@contextmanager
def host_server(reply: Callable[[str, str, str], str]) -> Iterator[str]:
    """A server of this machine, by its address for containers on the network `outside`. `reply` gets path,
    `Authorization` and body of each POST."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            text = reply(self.path, self.headers.get("Authorization", ""), body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    outside = json.loads(sh("docker", "network", "inspect", f"{PROJECT}_outside"))[0]["IPAM"]["Config"][0]["Gateway"]
    try:
        yield f"{outside}:{server.server_port}"
    finally:
        server.shutdown()


def a_judge_is_reached_through_its_relay() -> None:
    """A run's responses are judged by a model outside, with its key; the verifier itself gets nowhere else."""
    asked: set[tuple[str, str]] = set()

    def judge(path: str, authorization: str, body: str) -> str:
        asked.add((path, authorization))
        score = 10 if len(body) % 2 else 0
        answer = {"role": "assistant", "content": json.dumps({"feedback": "Because.", "score": score})}
        return json.dumps({"choices": [{"message": answer, "finish_reason": "stop"}], "usage": {}})

    (SOURCE / "deploy/secrets/judge_key").write_text("the-judges-key")
    relay = [*FILES, "-f", "deploy/compose.judge.yaml"]
    with host_server(judge) as address:
        settings = {"JUDGE_UPSTREAM": f"http://{address}", "JUDGE_MODEL": "judge"}
        command = ["docker", "compose", "-p", PROJECT, *relay]
        sh(*command, "up", "--detach", "--wait", "--no-deps", "judge-relay", "verifier", env=settings)
        try:
            run = start_run(
                rewards=[{"kind": "judge", "decides": True, "rubric": "10: right. 0: wrong."}], training__steps=3
            )
            succeeds(run, 3)
            assert asked == {("/v1/chat/completions", "Bearer the-judges-key")}, asked
            host, port = address.split(":")
            places = [("judge-relay", 8080), (host, int(port)), ("9.9.9.9", 53)]
            assert inside("verifier", CONNECT % (places,)).split() == ["judge-relay"]
        finally:
            sh(*command, "rm", "--stop", "--force", "judge-relay", env=settings)
            compose("up", "--detach", "--wait", "--no-deps", "verifier")


def alerts_by_profile() -> None:
    """One alert arrives at a webhook."""
    heard: list[str] = []

    def webhook(path: str, authorization: str, body: str) -> str:
        heard.append(body)
        return ""

    with host_server(webhook) as address:
        (SOURCE / "deploy/secrets/alert_webhook").write_text(f"http://{address}/")
        send_an_alert(heard)


def send_an_alert(heard: list[str]) -> None:
    compose("--profile", "alerts", "up", "--detach", "--no-deps", "alertmanager")
    found = get(f"{PROMETHEUS}/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
    assert [item["url"] for item in found] == ["http://alertmanager:9093/api/v2/alerts"], found
    post = (
        "import json, urllib.request as u; u.urlopen(u.Request('http://alertmanager:9093/api/v2/alerts',"
        "json.dumps([{'labels': {'alertname': 'Trial', 'severity': 'critical'}}]).encode(),"
        "{'Content-Type': 'application/json'}), timeout=5)"
    )
    command = ["docker", "run", "--rm", "--network", f"{PROJECT}_alerts", "turnout-core", "python", "-c", post]
    until("Alertmanager", lambda: sh(*command) == "", 30)
    until("the alert at the webhook", lambda: any("Trial" in text for text in heard), 60)


def backup_and_restore() -> None:
    """A run is saved while it moves, everything is deleted, and the run continues from its checkpoint."""
    environment = {
        "COMPOSE_PROJECT_NAME": PROJECT,
        "COMPOSE_FILE": "deploy/compose.yaml:deploy/compose.cpu.yaml",
    }
    run = start_run(training__steps=60)
    until("a checkpoint", lambda: step(run) >= 12, 300)
    backup = HERE / "backup"
    shutil.rmtree(backup, ignore_errors=True)
    sh("deploy/backup.sh", str(backup), env=environment)
    compose("--profile", "tls", "--profile", "alerts", "down", "--volumes", limit=120)
    sh("deploy/restore.sh", str(backup), env=environment, limit=300)
    succeeds(run, 60)


def down_and_up() -> None:
    run = start_run(training__steps=60)
    until("the run to move", lambda: step(run) >= 5, 300)
    compose("down", limit=120)
    up()
    succeeds(run, 60)


def down_leaves_nothing() -> None:
    compose("--profile", "tls", "--profile", "alerts", "down", "--volumes", limit=120)
    label = f"label=com.docker.compose.project={PROJECT}"
    for kind in ("volume", "network", "container"):
        assert not sh(
            "docker", kind, "ls", "-q", "--filter", label, *(["-a"] if kind == "container" else [])
        ).strip(), kind
    after = set(sh("docker", "volume", "ls", "-q").split())
    assert after <= BEFORE, after - BEFORE


CHECKS: list[Callable[[], None]] = [
    git_ignores_what_is_the_operators,
    the_configuration_is_sound,
    they_are_built,
    a_change_of_code_is_built_in_seconds,
    images_hold_nothing_of_the_operators,
    images_are_labelled_and_list_their_packages,
    gpus_go_where_the_env_file_says,
    up,
    containers_have_no_rights,
    the_verifier_reaches_no_further_than_its_network,
    services_reach_nothing_beyond_their_own,
    the_queue_server_knows_its_users,
    postgresql_has_no_default_password,
    the_sandbox_has_all_its_layers,
    attacks_are_contained_in_the_verifiers_container,
    keys_open_what_they_should,
    prometheus_sees_everything,
    scaled_services_have_names_of_their_own,
    two_runs_succeed_with_two_servers,
    a_hung_service_is_started_again,
    a_rotated_key_reaches_prometheus,
    a_rotated_queue_password_works,
    the_other_secrets_rotate,
    killed_containers_come_back,
    logs_are_json,
    tls_by_profile,
    alerts_by_profile,
    a_judge_is_reached_through_its_relay,
    down_and_up,
    backup_and_restore,
    down_leaves_nothing,
]


def main() -> int:
    copy_the_checkout()
    failed = []
    began = time.monotonic()
    chosen = sys.argv[1:]
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        if chosen and check.__name__ not in chosen:
            continue
        at = time.monotonic()
        try:
            check()
        except (AssertionError, OSError, KeyError, ValueError, subprocess.SubprocessError) as error:
            failed.append(name)
            print(f"FAIL {time.monotonic() - at:5.0f} s  {name}: {str(error)[-500:]}", flush=True)
        else:
            print(f"ok   {time.monotonic() - at:5.0f} s  {name}", flush=True)
    print(f"{len(failed)} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    HERE.mkdir(parents=True, exist_ok=True)
    SOURCE.mkdir(exist_ok=True)
    BEFORE = set(sh("docker", "volume", "ls", "-q").split())
    sys.exit(main())

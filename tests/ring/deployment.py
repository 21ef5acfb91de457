"""A whole deployment with real parts, started and ended by the command that people use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import yaml

from services.contracts.queue_users import USERS
from services.contracts.run_config import merge
from services.contracts.states import TERMINAL_STATES
from tests.conftest import ROOT, free_port
from turnout import Client
from turnout.cli.local.processes import find, read_state
from turnout.cli.local.queue_server import url_for
from turnout.client.models import Run, Service

DEMO = ROOT / "examples" / "runs" / "demo.yaml"
TURNOUT = [sys.executable, "-m", "turnout.cli.main"]
STALL_SECONDS = 5
PATIENCE_SECONDS = 600.0
"""Ends a test that would otherwise wait for ever; no test passes or fails by the clock."""


def demo_config(**changes: Any) -> dict[str, Any]:
    """The demo's run file with changes, section by section."""
    return merge(yaml.safe_load(DEMO.read_text()), changes)


def turnout(*arguments: str, home: Path, within: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """The command, its end awaited. `within` comes before it: what makes it run somewhere else."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["TURNOUT_STALL_SECONDS"] = str(STALL_SECONDS)
    return subprocess.run(
        [*within, *TURNOUT, *arguments, "--home", str(home)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@contextmanager
def deployment(home: Path, within: Sequence[str] = ()) -> Iterator[Client]:
    """`turnout up --detach` with a client of its API; `turnout down` at the end, whatever happened."""
    port = free_port()
    started = turnout("up", "--detach", "--api-port", str(port), home=home, within=within)
    try:
        assert started.returncode == 0, started.stderr + started.stdout
        with Client(f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        turnout("down", home=home)


@contextmanager
def joined(home: Path, instance: str, module: str = "services.rollout") -> Iterator[subprocess.Popen[bytes]]:
    """One more service for a deployment that runs, as an operator would start it: beside the supervisor, which
    knows nothing of it and so does not start it again. Killed at the end if it has not left by then."""
    state = read_state(home)
    assert state is not None
    url = state.redis_url
    if (user := instance.rpartition("-")[0]) in USERS:
        url = url_for(home, int(urlsplit(url).port or 0), user)
    environment = os.environ | {
        "TURNOUT_HOME": str(home),
        "TURNOUT_REDIS_URL": url,
        "TURNOUT_INSTANCE": instance,
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (home / "logs" / f"{instance}.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", module], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def service(client: Client, instance: str) -> Service | None:
    """What the API shows of one instance; None where it shows none."""
    return next((record for record in client.services() if record.instance == instance), None)


def num_restarts(home: Path, instance: str) -> int:
    """How often the supervisor has started an instance again; 0 while it is away."""
    state = read_state(home)
    return sum(record.num_restarts for record in state.processes if record.instance == instance) if state else 0


def process_of(home: Path, instance: str) -> psutil.Process | None:
    """One instance that the deployment started; None where it is just being restarted."""
    state = read_state(home)
    assert state is not None
    return next((find(record) for record in state.everything if record.instance == instance), None)


def kill(home: Path, instance: str) -> bool:
    """SIGKILL to one instance that the deployment started; False where it is just being restarted."""
    process = process_of(home, instance)
    if process is not None:
        process.send_signal(signal.SIGKILL)
    return process is not None


def patiently(ask: Callable[[], Any], until: Callable[[Any], bool]) -> Any:
    """Ask until the answer is as wanted. An API that is being restarted is asked again."""
    from services.contracts.errors import TurnoutError

    deadline = time.monotonic() + PATIENCE_SECONDS
    answer: Any = None
    while time.monotonic() < deadline:
        try:
            answer = ask()
            if until(answer):
                return answer
        except TurnoutError as error:
            answer = error
        time.sleep(0.2)
    raise AssertionError(f"still {answer!r} after {PATIENCE_SECONDS:.0f} s")


def finish(client: Client, run_id: str) -> Run:
    """The run once it has ended."""
    run: Run = patiently(lambda: client.run(run_id), lambda run: run.state in TERMINAL_STATES)
    return run


def num_steps(client: Client, run_id: str) -> int:
    return sum(1 for _ in client.steps(run_id))


def notes(client: Client, run_id: str) -> list[str]:
    """What services have noted on a run."""
    page = httpx.get(f"{client.url}/v1/runs/{run_id}/events", params={"follow": "false"}, trust_env=False).text
    events = [json.loads(line.removeprefix("data:")) for line in page.splitlines() if line.startswith("data:")]
    return [event["text"] for event in events if "text" in event]

"""One service of a whole deployment: joined, looked at, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from services.contracts.queue_users import USERS
from services.contracts.records import Service
from tools.deployment import ROOT
from turnout import Client
from turnout.cli.local.processes import find, read_state
from turnout.cli.local.queue_server import url_for


@contextmanager
def joined(home: Path, instance: str, module: str = "services.rollout") -> Iterator[subprocess.Popen[bytes]]:
    """One more service for a running deployment, started as an operator would, next to the supervisor, which does not
    know about it and does not restart it. Killed at the end if it has not left by then."""
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


def num_steps(client: Client, run_id: str) -> int:
    return sum(1 for _ in client.steps(run_id))


def notes(client: Client, run_id: str) -> list[str]:
    """What services have noted on a run."""
    return [event.data["text"] for event in client.events(run_id, follow=False) if "text" in event.data]

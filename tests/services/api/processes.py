"""The API as a real process, for what needs one: its start, its locks, its death."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from services.runtime.address import free_port
from services.runtime.settings import Settings

API = ("-m", "services.api")


def environment_of(settings: Settings, **more: str) -> dict[str, str]:
    """The environment in which a process has these settings."""
    given = {"HOME": str(settings.home), "REDIS_URL": settings.redis_url, "DATABASE_URL": settings.database_url}
    return os.environ | {f"TURNOUT_{name}": value for name, value in (given | more).items()}


@contextmanager
def api_process(environment: dict[str, str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """An API that is ready, and a client of it. Killed at the end."""
    port = free_port()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *API], env=environment | {"TURNOUT_PORT": str(port)}, stdout=output, stderr=output
        )
    try:
        # Refused connections are retried with backoff, for longer than a slow start takes.
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=9)) as client:
            while client.get("/readyz").status_code != 200:
                assert process.poll() is None, log.read_text()
            yield process, client
    finally:
        process.kill()
        process.wait()

"""A real Prometheus for tests: Debian's package, scraping one API."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from services.runtime.address import free_port
from tests.conftest import ROOT
from tools.deployment import patiently

RULES = ROOT / "deploy" / "prometheus"
LOCK_WAIT = "DPkg::Lock::Timeout=300"
"""Another installation on this machine is waited for."""


def binary(name: str) -> str:
    """Path of `prometheus` or `promtool`; installs Debian's package where that is possible."""
    if shutil.which(name) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        subprocess.run(["apt-get", "update", "-qq", "-o", LOCK_WAIT], check=False, capture_output=True)
        command = ["apt-get", "install", "-y", "-qq", "-o", LOCK_WAIT, "--no-install-recommends", "prometheus"]
        subprocess.run(command, check=False, capture_output=True, env=environment)
    found = shutil.which(name)
    if found is None:
        pytest.fail("These tests need Prometheus: run `apt-get install prometheus` as root.")
    return found


class Prometheus:
    """One running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Samples of an instant query; an expression that is not valid is an error."""
        return self._ask("query", query=expression)

    def query_since(self, start: float, expression: str) -> list[dict[str, Any]]:
        """The same at every second since `start` (Unix time): one entry a series that had samples."""
        return self._ask("query_range", query=expression, start=start, end=time.time(), step=1)

    def _ask(self, what: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/{what}", params=parameters, trust_env=False).json()
        assert answer["status"] == "success", (parameters, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@contextmanager
def prometheus(api_url: str, folder: Path) -> Iterator[Prometheus]:
    """A server that scrapes `api_url` every second, otherwise with the configuration that we ship."""
    shipped = yaml.safe_load((RULES / "prometheus.yml").read_text())
    [job] = [job for job in shipped["scrape_configs"] if job["job_name"] == "turnout"]
    del job["authorization"]
    job["static_configs"] = [{"targets": [api_url.removeprefix("http://")]}]
    shipped |= {"scrape_configs": [job], "rule_files": [str(RULES / "rules.yml")]}
    shipped["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(shipped))
    port = free_port()
    log = (folder / "prometheus.log").open("w")
    process = subprocess.Popen(
        [
            binary("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        patiently(server.ready, bool)
        yield server
    finally:
        process.terminate()
        process.wait(30)
        log.close()

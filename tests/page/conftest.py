"""The page in a real Chromium, against the real API, with a played learner and rollout server."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from services.runtime.address import free_port
from tests.conftest import ROW
from tests.page.forked import start_api
from tests.page.player import Player
from tests.page.visitor import AXE, Visitor

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "chromium-driver")
LOCK_WAIT = "DPkg::Lock::Timeout=300"
"""Waits for another installation on this machine."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)
START_SECONDS = 90


def _find() -> tuple[str, str] | None:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@pytest.fixture(scope="session")
def chromium() -> tuple[str, str]:
    """Paths of Chromium and its driver; installs Debian's packages if possible."""
    found = _find()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq", "-o", LOCK_WAIT], check=False, capture_output=True)
        command = ["apt-get", "install", "-y", "-qq", "-o", LOCK_WAIT, "--no-install-recommends", *PACKAGES]
        subprocess.run(
            command, check=False, capture_output=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )
        found = _find()
    if found is None:
        pytest.fail("The page's tests need Chromium: run `apt-get install chromium chromium-driver` as root.")
    return found


@pytest.fixture(scope="session")
def axe() -> None:
    """axe-core, from the packages of the page's checks; installs them if possible."""
    if not AXE.exists() and shutil.which("npm"):
        subprocess.run(["npm", "ci", "--silent"], check=False, capture_output=True)
    if not AXE.exists():
        pytest.fail("The page's tests need axe-core: install Node.js with npm and run `npm ci`.")


@pytest.fixture(scope="package")
def driver(
    chromium: tuple[str, str], axe: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[webdriver.Chrome]:
    """One browser for all tests."""
    options = webdriver.ChromeOptions()
    options.binary_location = chromium[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(chromium[1]))
    made.set_page_load_timeout(60)
    yield made
    made.quit()


class Api:
    """The API as a process that can be killed and restarted at the same address."""

    def __init__(self, home: Path, redis_url: str, key: str = "") -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.home = home
        self._process: ForkServerProcess | None = None
        self._environment = {
            **os.environ,
            "TURNOUT_HOME": str(home),
            "TURNOUT_REDIS_URL": redis_url,
            "TURNOUT_PORT": str(port),
            "TURNOUT_API_KEY": key,
        }

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self._process = start_api(self._environment, self.home / "api.log")
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            assert self._process.is_alive(), (self.home / "api.log").read_text()
            assert time.monotonic() < deadline, "the API did not become ready"
            time.sleep(0.02)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """End it immediately, like a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


@pytest.fixture
def api(tmp_path: Path, valkey_url: str) -> Iterator[Api]:
    made = Api(tmp_path / "home", valkey_url)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def player(valkey_url: str) -> Iterator[Player]:
    made = Player(valkey_url)
    yield made
    made.close()


@pytest.fixture
def browser(driver: webdriver.Chrome, api: Api) -> Iterator[Visitor]:
    """A visitor with nothing stored, a wide window in light mode, and a check of the console at the end."""
    visitor = Visitor(driver, api.url)
    visitor.reset()
    yield visitor
    visitor.leave()
    assert visitor.faults() == [], "the page wrote errors to the console"


@pytest.fixture
def run_text(tmp_path: Path) -> str:
    """A valid run file whose model and data exist."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    data = tmp_path / "train.jsonl"
    data.write_text(ROW)
    return (
        f"name: first run\nmodel:\n  path: {model}\ndata:\n  train: {data}\n"
        "objective:\n  clip_low: 0.2\ntraining:\n  steps: 60\n"
    )

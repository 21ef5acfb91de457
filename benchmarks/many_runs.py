"""Lists and pages with many runs: how long the API takes to answer, and Chromium to show.

The runs and their steps are written into the database directly; all of them have ended. Needs Chromium and its driver.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from sqlalchemy import insert, text

from benchmarks._hops import valkey
from services.api.storage.database import open_database
from services.api.storage.runs import Run
from services.contracts.run_config import parse_run_config
from services.contracts.step_metrics import STEP_METRICS
from services.runtime.address import free_port
from services.runtime.settings import Settings
from tools.deployment import demo_config, patiently

REPEATS = 7
LISTS = {
    "The newest 30 runs": "/v1/runs?limit=30",
    "200 runs": "/v1/runs?limit=200",
    "30 runs by a value of the configuration": "/v1/runs?limit=30&config=optimizer.learning_rate=0.0002",
    "30 runs by part of the name": "/v1/runs?limit=30&name=run-99",
}
SHOWN = {
    "The list of runs": ("#/", "document.querySelectorAll('.run .spark path').length >= 3"),
    "The table of all runs": ("#/table", "document.querySelectorAll('tr[data-run]').length >= 1"),
    "Two runs compared": ("#/compare?runs=run-0,run-1", "document.querySelectorAll('.chart .trace').length >= 2"),
}
"""Addresses, and the condition that what their users came for is there."""


async def fill(home: Path, num_runs: int, num_steps: int) -> None:
    """Write succeeded runs with every metric of every step."""
    settings = Settings(home=home)
    database = await open_database(settings)
    config = parse_run_config(demo_config(training={"steps": num_steps})).model_dump(mode="json")
    now = time.time()
    rows = [_run(number, config, num_steps, now - 60.0 * (num_runs - number)) for number in range(num_runs)]
    metrics = json.dumps({name: 0.123456789 + i for i, name in enumerate(STEP_METRICS)})
    steps = text(
        "WITH RECURSIVE n(step) AS (SELECT 1 UNION ALL SELECT step + 1 FROM n WHERE step < :steps) "
        "INSERT INTO steps (run_id, step, at, metrics, groups, histograms) "
        "SELECT runs.id, n.step, runs.created_at + n.step, :metrics, '{}', '{}' FROM runs CROSS JOIN n"
    )
    async with database.write() as session:
        await session.execute(insert(Run), rows)
        await session.execute(steps, {"steps": num_steps, "metrics": metrics})
    await database.close()


def _run(number: int, config: dict[str, Any], step: int, created_at: float) -> dict[str, Any]:
    name = f"run-{number}"
    times = dict.fromkeys(("created_at", "queued_at", "started_at"), created_at)
    texts = {"name": name, "state": "succeeded", "desired": "running", "reason": "", "learner_said": "", "note": ""}
    empty = {"rollout_servers": [], "priority": 0, "created_by": "", "tags": [], "request_digest": ""}
    run = {"id": name, "config": {**config, "name": name}, "finished_at": created_at + step, "step": step}
    return {**run, **texts, **times, **empty}


@contextmanager
def api(home: Path, redis_url: str) -> Iterator[str]:
    """URL of an API with this home."""
    port = free_port()
    environment = {"TURNOUT_HOME": str(home), "TURNOUT_REDIS_URL": redis_url, "TURNOUT_PORT": str(port)}
    environment["TURNOUT_RATE_LIMIT"] = ""
    with (home / "api.log").open("wb") as log:
        command = [sys.executable, "-m", "services.api"]
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        patiently(lambda: _is_ready(url), bool)
        yield url
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def time_lists(url: str) -> dict[str, list[float]]:
    """Milliseconds for each list. Responses are cached until the database changes, so each request is different."""
    found: dict[str, list[float]] = {name: [] for name in LISTS}
    with httpx.Client(base_url=url, timeout=60) as client:
        for repeat in range(REPEATS):
            for name, path in LISTS.items():
                started = time.perf_counter()
                client.get(f"{path}&unique={repeat}").raise_for_status()
                found[name].append(1000 * (time.perf_counter() - started))
    return found


def time_pages(url: str) -> dict[str, list[float]]:
    """Milliseconds from the page's load to the condition in `SHOWN`, in a new document each time."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    look = "const done = arguments[0], look = () => %s ? done(performance.now()) : setTimeout(look, 5); look();"
    found: dict[str, list[float]] = {name: [] for name in SHOWN}
    try:
        driver.set_script_timeout(60)
        for _ in range(REPEATS):
            for name, (address, condition) in SHOWN.items():
                driver.get("about:blank")
                driver.get(f"{url}/{address}")
                found[name].append(driver.execute_async_script(look % condition))
    finally:
        driver.quit()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnout-many-") as folder, valkey() as redis_url:
        home = Path(folder)
        asyncio.run(fill(home, options.runs, options.steps))
        with api(home, redis_url) as url:
            lists, pages = time_lists(url), time_pages(url)
    print(f"## Many runs\n\n{options.runs:,} runs of {options.steps} steps with {len(STEP_METRICS)} metrics each, on")
    print(f"SQLite. Median and largest of {REPEATS}, pages in Chromium from navigation until their content is drawn.\n")
    print("| | median | largest |\n|---|---|---|")
    for name, times in (lists | pages).items():
        print(f"| {name} | {statistics.median(times):.0f} ms | {max(times):.0f} ms |")


if __name__ == "__main__":
    main()

"""Experiments on the page: watched, stopped, resumed, read and downloaded."""

from __future__ import annotations

import json
import time
from pathlib import Path

from services.contracts.events import RunStateChanged
from tests.page.calls import get, post
from tests.page.conftest import Api
from tests.page.played_experiment import experiment_file, play_waiting
from tests.page.player import Player
from tests.page.visitor import PHONE, WIDE, Visitor


def run_in(state: str, api: Api, experiment_id: str) -> str:
    """A run of the experiment that is in this state; an empty text if there is none."""
    runs = get(api, f"/v1/experiments/{experiment_id}")["runs"]
    return next((run["run_id"] for run in runs if run["state"] == state), "")


def test_an_experiment_is_watched_until_its_results(api: Api, browser: Visitor, player: Player, tmp_path: Path) -> None:
    browser.go("#/experiments")
    browser.sees("No experiments yet.")
    file = experiment_file(tmp_path, ("srpo", "grpo"), tuning=1, final=2, steps=6)
    made = post(api, "/v1/experiments", file)
    browser.sees("0 of 8 runs ended")
    browser.press("h2 a", "rates")
    browser.sees("No results yet.")
    browser.sees("not chosen yet")
    browser.sees("Does SRPO beat GRPO")
    browser.run("window.notReloaded = true")

    # Stop, with a confirmation, and resume, which is refused while a run is stopping.
    run_id = browser.until(lambda: run_in("starting", api, made["id"]), "the first run has its services")
    browser.press("button", "Stop …")
    browser.press("button", "Keep running")
    browser.press("button", "Stop …")
    browser.press("button", "Stop with checkpoints")
    browser.find('.run-head .badge[data-state="stopped"]')
    browser.press("button", "Resume")
    browser.sees("Some runs are still stopping.")
    player.emit(RunStateChanged(run_id=run_id, at=time.time(), state="stopped"))
    browser.until(lambda: not run_in("stopping", api, made["id"]), "the run has stopped")
    browser.press("button", "Resume")
    browser.find('.run-head .badge[data-state="running"]')
    browser.lacks("Some runs are still stopping.")

    def ended() -> bool:
        play_waiting(api, player, made["id"])
        return bool(get(api, f"/v1/experiments/{made['id']}")["state"] == "succeeded")

    browser.until(ended, "the experiment ends")
    browser.find('.run-head .badge[data-state="succeeded"]')
    browser.sees("8 of 8 runs ended")
    assert browser.run("return window.notReloaded")

    # What the page shows is what the API says.
    results = get(api, f"/v1/experiments/{made['id']}/results")
    srpo, grpo = results["methods"]
    table = browser.find('[aria-label="Results"] table').text
    for method in (srpo, grpo):
        for estimate in (method["before"], method["within_steps"]["3"], method["score"]):
            assert f"{100 * estimate['mean']:.1f}" in table
    assert f"+{100 * srpo['difference']['mean']:.1f}" in browser.find('[aria-label="Differences"] table').text
    claims = [row.text for row in browser.all('[aria-label="Claims"] tbody tr')]
    assert [claim["verdict"] in row for claim, row in zip(results["claims"], claims, strict=True)] == [True, True]
    chosen = [row.text for row in browser.all('[aria-label="Tuning"] tbody tr') if "chosen" in row.text]
    assert [row.split()[:3] for row in chosen] == [[m, "learning_rate", "0.0002"] for m in ("srpo", "grpo")]
    traces = "return document.querySelector('[data-chart=\"Accuracy by seconds\"] .plot').data?.map((t) => t.y)"
    browser.until(lambda: len(browser.run(traces) or []) == 6, "two curves, each with a band")
    low, high, mean = browser.run(traces)[:3]
    assert [(p["low"], p["high"], p["mean"]) for p in srpo["curve"]] == list(zip(low, high, mean, strict=True))

    # It can be read in the dark and on a phone.
    browser.has_no_barriers()
    browser.resize(*PHONE)
    browser.until(lambda: browser.overflow() <= 0, "the page fits a phone")
    browser.resize(*WIDE)

    # The links lead to the runs and to their comparison.
    run_id = get(api, f"/v1/experiments/{made['id']}")["runs"][-1]["run_id"]
    assert len(browser.all('[aria-label="Runs"] tbody tr')) == 8
    browser.press("a", "Compare the first 4 final runs")
    browser.sees("Compare runs")
    browser.driver.back()
    browser.press("td a", run_id)
    browser.find(".run-head h1")


def is_whole(path: Path) -> bool:
    """Whether a JSON download is complete: Chromium creates the file before it has the content."""
    try:
        json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return True


def test_results_and_file_are_downloaded(api: Api, browser: Visitor, player: Player, tmp_path: Path) -> None:
    file = experiment_file(tmp_path, ("srpo", "grpo"), tuning=1, final=2, steps=2)
    made = post(api, "/v1/experiments", file)
    folder = tmp_path / "downloads"
    browser.downloads_to(folder)
    browser.go(f"#/experiments/{made['id']}")
    browser.press("button", "Download results")
    path = folder / f"{made['id']}-results.json"
    browser.until(lambda: is_whole(path), "the results are saved")
    saved = json.loads(path.read_text())
    assert saved["experiment"]["id"] == made["id"]
    assert saved["results"] == get(api, f"/v1/experiments/{made['id']}/results")
    browser.press("summary", "Experiment file")
    browser.sees(made["digest"])
    browser.press("button", "Download file")
    path = folder / f"{made['id']}.json"
    browser.until(lambda: is_whole(path), "the file is saved")
    assert json.loads(path.read_text()) == file
    assert post(api, "/v1/experiments", json.loads(path.read_text()))["digest"] == made["digest"]


def test_an_unknown_experiment_says_so(browser: Visitor) -> None:
    browser.go("#/experiments/nothing")
    browser.sees("Not found")
    browser.press("a", "See all experiments")
    browser.sees("No experiments yet.")

"""Evaluations on the page: watched, read question by question, compared, cancelled; and what a run learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.page.calls import get, post
from tests.page.conftest import Api
from tests.page.player import Player
from tests.page.visitor import PHONE, WIDE, Visitor

FIRST, SECOND = (4, 0, 1, 2, 0), (4, 4, 2, 0, 0)
"""Correct samples of four for each question of the set `hard`."""


def request(folder: Path, **changes: Any) -> dict[str, Any]:
    """An evaluation of two sets whose model and data exist."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/config.json").write_text("{}")
    data = folder / "hard.jsonl"
    rows = [{"id": f"q{n}", "kind": "mcq", "prompt": f"Which <b>one</b>? {n}", "answer": "A"} for n in range(5)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [{"path": str(data), "num_samples": 4}, {"path": str(data), "name": "greedy", "num_samples": 1, "limit": 2}]
    return {"model": {"path": str(folder / "model")}, "data": {"validation": sets}, **changes}


def test_evaluations_are_watched_read_and_compared(
    api: Api, browser: Visitor, player: Player, tmp_path: Path, run_text: str
) -> None:
    browser.go("#/evaluations/compare")
    browser.sees("Nothing to compare yet.")
    browser.go("#/evaluations/nothing")
    browser.sees("Not found")
    browser.press("a", "See all evaluations")
    browser.sees("No evaluations yet.")
    first = post(api, "/v1/evaluations", request(tmp_path, name="before the exam"))["id"]
    browser.press("h2 a", "before the exam")
    player.judge(first, FIRST[:3])
    browser.sees("3 of 7 questions")
    browser.find('.run-head .badge[data-state="running"]')
    browser.run("window.notReloaded = true")
    player.judge(first, (*FIRST[3:], 1, 0))
    browser.find('.run-head .badge[data-state="succeeded"]')
    browser.until(lambda: len(browser.all("[data-question]")) == 7, "all questions are listed")
    assert browser.run("return window.notReloaded")

    # What the page shows is what the API says.
    hard, greedy = get(api, f"/v1/evaluations/{first}")["results"]
    tables = {name: browser.find(f'[aria-label="{name}"] table').text for name in ("Results", "pass@k")}
    for result in (hard, greedy):
        low, high = (f"{100 * result['accuracy'][end]:.1f}" for end in ("low", "high"))
        assert f"{100 * result['accuracy']['value']:.1f}% [{low}, {high}]" in tables["Results"]
    for item in hard["pass_at_k"]:
        assert f"{100 * item['share']['value']:.1f}%" in tables["pass@k"]

    # Questions are filtered, and opened with their samples; the address keeps both.
    browser.choose("Show", "correct and failed samples")
    browser.choose("Set", "hard")
    browser.sees("2 of 7 questions.")
    browser.write('input[type="search"]', "Q3")
    browser.sees("1 of 7 questions.")
    browser.press("[data-question]", "q3")
    browser.sees("Which <b>one</b>? 3")
    address = browser.driver.current_url.split("/", 3)[3]
    browser.go(address)
    browser.sees("Which <b>one</b>? 3")
    browser.sees("1 of 7 questions.")
    assert [one.text.split()[-1] for one in browser.all(".sample .badge")] == ["correct"] * 2 + ["failed"] * 2
    assert browser.all("main b") == []
    looks_right(browser)

    # A comparison is between two evaluations, and leads to their questions.
    second = post(api, "/v1/evaluations", request(tmp_path, name="after the exam"))["id"]
    player.judge(second, (*SECOND, 1, 0))
    browser.until(lambda: get(api, f"/v1/evaluations/{second}")["state"] == "succeeded", "the second one ends")
    browser.go(f"#/evaluations/compare?first={first}&second={second}")
    browser.until(lambda: learned(browser) == ["q1", "q2"], "the questions learned are listed")
    assert learned(browser, "Forgotten") == ["q3"]
    looks_right(browser)
    browser.press("button", "Swap")
    browser.until(lambda: learned(browser) == ["q3"], "forgotten is learned")
    browser.press("td a", "q3")
    browser.sees("before the exam")
    browser.sees("1 of 7 questions.")
    browser.press("button", "Delete …")
    browser.press("button", "Delete permanently")
    browser.until(lambda: len(browser.all("[data-evaluation]")) == 1, "the first one is deleted")
    browser.sees("7 of 7 questions")
    looks_right(browser)

    # One that waits says for what, and can be cancelled.
    run_id = post(api, "/v1/runs", post(api, "/v1/run-files/check", {"text": run_text})["config"])["id"]
    browser.until(lambda: get(api, f"/v1/runs/{run_id}")["state"] == "starting", "the run has its services")
    post(api, "/v1/evaluations", request(tmp_path, name="too late"))
    browser.sees(f"Waits for an idle rollout server; run {run_id} uses the only one.")
    browser.press("h2 a", "too late")
    browser.press("button", "Cancel …")
    browser.press("button", "Keep running")
    browser.press("button", "Cancel …")
    browser.press("button", "Cancel the evaluation")
    browser.find('.run-head .badge[data-state="cancelled"]')
    browser.sees("cancelled by request")

    # A run shows what it has learned between its own evaluations.
    player.take(run_id)
    player.evaluation(0, 0.25, questions=(16, 0, 8, 7))
    browser.go(f"#/runs/{run_id}")
    browser.press("a", "Learned and forgotten")
    browser.sees("Nothing to compare yet.")
    browser.press("a", "Evaluations of its weights")
    browser.sees("No evaluations of this run’s weights yet.")
    player.evaluation(25, 0.5, questions=(7, 16, 8, 7))
    player.evaluation(50, 0.5, questions=(16, 16, 0, 9))
    browser.until(lambda: len(get(api, f"/v1/runs/{run_id}/evaluations")["items"]) == 3, "the evaluations are stored")
    browser.go(f"#/runs/{run_id}/changes")
    browser.until(lambda: learned(browser) == ["question-1", "question-3"], "from the first step to the last")
    assert learned(browser, "Forgotten") == ["question-2"]
    browser.choose("Second", "step 25")
    browser.until(lambda: learned(browser) == ["question-1"], "from the first step to another")
    assert browser.driver.current_url.endswith("?first=0&second=25")


def learned(browser: Visitor, label: str = "Learned") -> list[str]:
    """The questions that are listed as learned, or as forgotten."""
    return [row.text for row in browser.all(f'section[aria-label="{label}"] tbody td:first-child')]


def looks_right(browser: Visitor) -> None:
    """The view has no barriers in light and dark, and fits a phone."""
    browser.has_no_barriers()
    browser.resize(*PHONE)
    browser.until(lambda: browser.overflow() <= 0, "the page fits a phone")
    browser.resize(*WIDE)

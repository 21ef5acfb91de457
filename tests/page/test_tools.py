"""Tools for reading charts: smoothing, logarithmic axes, data as CSV, addresses that keep the view, differences."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.page.conftest import Api
from tests.page.player import Player, step_metrics
from tests.page.test_page import start
from tests.page.visitor import Visitor

DATA = "return document.querySelector('[data-chart=\"{}\"] .plot').{}"


def test_charts_are_smoothed_scaled_and_downloaded(
    api: Api, browser: Visitor, player: Player, run_text: str, tmp_path: Path
) -> None:
    run_id = start(api, browser, player, run_text)
    browser.downloads_to(tmp_path)
    browser.go(f"#/runs/{run_id}")
    chart = '[data-chart="Divergence"]'
    browser.find(f"{chart} .scatterlayer")
    browser.choose("Smoothing", "mean of 5 steps")
    browser.press("label", "Logarithmic axis")
    values = [step_metrics(step)["divergence_nats"] for step in range(1, 7)]
    smoothed = pytest.approx([sum(values[max(0, i - 4) : i + 1]) / min(i + 1, 5) for i in range(6)])
    drawn = DATA.format("Divergence", "data?.[0].y")
    axis = DATA.format("Divergence", "layout?.yaxis.type")
    browser.until(lambda: browser.run(drawn) == smoothed and browser.run(axis) == "log", "the choice is drawn")

    # The address keeps the choice.
    browser.go(browser.driver.current_url.split("/", 3)[3])
    browser.find(f"{chart} .scatterlayer")
    browser.until(lambda: browser.run(drawn) == smoothed and browser.run(axis) == "log", "the same again")

    # What is downloaded is what is drawn.
    browser.find(f"{chart} button").click()
    path = tmp_path / "Divergence.csv"
    browser.until(lambda: path.exists() and path.stat().st_size > 0, "the data is saved")
    header, *rows = csv.reader(path.open(newline=""))
    assert header == ["training step", "mean"]
    assert [(int(step), float(value)) for step, value in rows] == list(enumerate(browser.run(drawn), start=1))


def test_the_list_and_a_comparison_can_be_shared(api: Api, browser: Visitor, player: Player, run_text: str) -> None:
    first = start(api, browser, player, run_text)
    player.state("succeeded")
    player.run_id = None
    player.beat()
    other = run_text.replace("first run", "second run").replace("clip_low: 0.2", "name: grpo")
    second = start(api, browser, player, other)
    browser.go()
    browser.choose("State", "succeeded")
    browser.write('input[name="name"]', "run")
    browser.write('input[name="config"]', "objective.name=srpo data.")
    browser.until(lambda: len(browser.all(".run")) == 1, "one run matches")
    browser.go(browser.driver.current_url.split("/", 3)[3])
    browser.sees("first run")
    assert [run.get_attribute("data-run") for run in browser.all(".run")] == [first]

    # A table of the same runs with chosen columns; everything that is chosen stays in the address.
    browser.press("a", "Table")
    browser.until(lambda: len(browser.all("tr[data-run]")) == 1, "the filter stays")
    browser.go("#/table")
    browser.press("button", "Reward")
    browser.find(f'tr[data-run="{first}"] .star').click()
    browser.write('input[name="column"]', "rollout.temperature")
    browser.press("button", "optimizer.learning_rate ×")
    differing = f'tr[data-run="{second}"] .differs'
    browser.until(lambda: [cell.text for cell in browser.all(differing)] == ["grpo"], "the difference stands out")
    browser.has_no_barriers()
    browser.go(browser.driver.current_url.split("/", 3)[3])
    browser.until(lambda: [cell.text for cell in browser.all(differing)] == ["grpo"], "the same again")
    head = [cell.text for cell in browser.all("thead th")][1:]
    assert head == [
        "Run",
        "State",
        "Step",
        "objective.name",
        "Reward ↓",
        "Correct rollouts",
        "rollout.temperature",
        "Created",
    ]
    assert [row.get_attribute("data-run") for row in browser.all("tr[data-run]")] == [second, first]
    browser.find(f'tr[data-run="{second}"] input').click()
    browser.press("a", "Compare 2")
    dashes = "return (document.querySelector('.chart .plot')?.data ?? []).map((line) => line.line.dash)"
    browser.until(lambda: browser.run(dashes) == ["solid", "dash"], "the baseline is dashed")
    assert browser.find('[aria-label="Summary"] .difference').text == "0.000"

    # A hidden run is left out of lists until it is asked for.
    browser.go(f"#/runs/{second}")
    browser.press("button", "Hide")
    browser.named("button", "Unhide")
    browser.go()
    browser.until(lambda: [run.get_attribute("data-run") for run in browser.all(".run")] == [first], "it is left out")
    browser.press("label", "Show hidden runs")
    browser.until(lambda: len(browser.all(".run")) == 2, "both")

    browser.go(f"#/compare?runs={first},{second}")
    table = browser.find('[aria-label="Configuration differences"]')
    rows = [row.text.split() for row in table.find_elements("css selector", "tbody tr")]
    assert rows == [["objective.name", '"srpo"', '"grpo"']]

    # The second run has the first one's settings, which its page notes.
    browser.go(f"#/runs/{second}")
    browser.sees("Set `preset: paper-grpo`")

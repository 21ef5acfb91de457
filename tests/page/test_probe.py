"""A probe from the editor, and its report on the run's page."""

from __future__ import annotations

import msgspec

from tests.page.calls import get
from tests.page.conftest import Api
from tests.page.player import Player
from tests.page.visitor import Visitor
from tests.unit.contracts.test_probe import GOOD


def test_a_run_file_is_probed_before_it_starts(api: Api, browser: Visitor, player: Player, run_text: str) -> None:
    browser.go("#/start")
    browser.write("#run-file", run_text.replace("0.2", "7"))
    browser.press("button", "Probe")
    browser.sees("objective.clip_low is 7")
    browser.write("#run-file", run_text)
    browser.press("button", "Probe")
    browser.sees("The probe has not sampled its questions yet")
    run_id = browser.driver.current_url.rsplit("/", 1)[1]
    assert get(api, f"/v1/runs/{run_id}")["config"]["probe"] == {"num_questions": 32, "planned_steps": 60}

    # The report appears without a reload, and the time with the first step.
    browser.until(lambda: get(api, f"/v1/runs/{run_id}")["state"] == "starting", "the probe has its services")
    player.take(run_id)
    player.emit(msgspec.structs.replace(GOOD, run_id=run_id))
    browser.sees("the task can be learned")
    browser.sees("known after the first training step")
    player.step(1)
    browser.sees("for 60 steps, without evaluations")
    report = browser.find('[aria-label="Probe"]').text
    assert get(api, f"/v1/probes/{run_id}")["advice"][0] in report
    for text in ("40.0%", "80.0%", "+30.0 points: 40.0% without, 70.0% with (20 questions)"):
        assert text in report

    # The same text can be started as a run, which is not a probe.
    browser.driver.back()
    browser.write("#run-file", run_text)
    browser.press("button", "Start run")
    browser.find('.run-head .badge[data-state="queued"]')
    assert not browser.all('[aria-label="Probe"]')

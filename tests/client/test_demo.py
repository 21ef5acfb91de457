"""The demo from start to finish over the real API: success, Ctrl-C and resume, faults; no process is left running."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from services.contracts.errors import NotFoundError
from tests.client.rings import light_plan
from turnout import Client
from turnout.cli.commands import demo as demo_module
from turnout.cli.commands.demo import Demo
from turnout.cli.exits import EXIT_INTERRUPTED, EXIT_OK
from turnout.cli.local.plan import ONE_EACH, Counts, Plan
from turnout.cli.local.processes import launched, read_state
from turnout.cli.local.supervisor import StartFailedError

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Every plan that this test's demos make, with stand-ins for the heavy services."""
    made: list[Plan] = []

    def make(home: Path, counts: Counts = ONE_EACH, *, api_port: int = 0) -> Plan:
        made.append(light_plan(home, counts, api_port=api_port))
        return made[-1]

    monkeypatch.setattr(demo_module, "make_plan", make)
    return made


def demo(home: Path, run_file: Path, steps: int) -> Demo:
    return Demo(home, file=run_file, settings=[f"training.steps={steps}"], as_json=False)


def nothing_left(plans: list[Plan]) -> bool:
    return all(not launched(plan.launch) and read_state(plan.home) is None for plan in plans)


def interrupt_at_step(home: Path, step: int) -> threading.Thread:
    """Press Ctrl-C once the first run has finished `step` steps."""

    def press() -> None:
        done = threading.Event()
        while not done.wait(0.05):
            state = read_state(home)
            if state is None:
                continue
            with Client(state.api_url) as client:
                if client.ready() and any(run.step >= step for run in client.runs()):
                    os.kill(os.getpid(), signal.SIGINT)
                    done.set()

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    return thread


def test_interrupted_and_taken_up_again(
    tmp_path: Path,
    run_file: Path,
    plans: list[Plan],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "demo"
    pressing = interrupt_at_step(home, 3)
    assert demo(home, run_file, 60).run(resume=False) == EXIT_INTERRUPTED
    pressing.join()
    assert nothing_left(plans)
    out = capsys.readouterr().out
    assert "Stopping with a checkpoint" in out
    assert "is stopped" in out
    assert f"use `turnout demo --resume --home {home}`" in out
    assert list(home.glob("runs/*/checkpoints/step-*"))

    monkeypatch.setenv("STEP_SECONDS", "0.005")
    assert demo(home, run_file, 60).run(resume=True) == EXIT_OK
    assert nothing_left(plans)
    out = capsys.readouterr().out
    assert "step 60/60" in out
    assert "avg@16 went from 25.0% to 50.0% (+25.0 points) on 64 held-out questions." in out
    report = next(home.glob("runs/*/report/report.html"))
    assert f"Report: {report}" in out


def test_nothing_to_take_up_is_told_before_anything_starts(tmp_path: Path, run_file: Path, plans: list[Plan]) -> None:
    with pytest.raises(NotFoundError, match="no interrupted demo run"):
        demo(tmp_path / "demo", run_file, 3).run(resume=True)
    assert plans == []


def test_a_service_that_cannot_start_ends_everything(
    tmp_path: Path, run_file: Path, monkeypatch: pytest.MonkeyPatch, plans: list[Plan]
) -> None:
    monkeypatch.setenv("TURNOUT_LOG_LEVEL", "loud")
    with pytest.raises(StartFailedError, match="TURNOUT_LOG_LEVEL is 'loud'"):
        demo(tmp_path / "demo", run_file, 3).run(resume=False)
    assert nothing_left(plans)


def test_ctrl_c_before_the_run_leaves_nothing(tmp_path: Path, run_file: Path, plans: list[Plan]) -> None:
    home = tmp_path / "demo"

    def press() -> None:
        while read_state(home) is None:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    assert demo(home, run_file, 3).run(resume=False) == EXIT_INTERRUPTED
    thread.join()
    assert nothing_left(plans)

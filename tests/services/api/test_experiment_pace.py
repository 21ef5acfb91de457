"""The time that an experiment has left, from the runs it has."""

from __future__ import annotations

import time
from typing import Any

import pytest

from services.api.resources.experiments.pace import seconds_left
from services.api.storage.runs import Run
from services.contracts.records import ExperimentRun
from services.contracts.states import RunState


def item(state: RunState | None, step: int, num_steps: int = 10) -> ExperimentRun:
    fixed: dict[str, Any] = {"cell": "", "phase": "tuning", "method": "srpo", "values": {}, "seed": 1, "accuracy": None}
    return ExperimentRun(**fixed, run_id="run", state=state, step=step, num_steps=num_steps)


def run(state: RunState, step: int, began: float, ended: float | None = None) -> Run:
    return Run(state=state, step=step, started_at=began, finished_at=ended)


def test_steps_take_as_long_as_in_the_median_run_that_succeeded() -> None:
    """One of them was stopped for hours in between, which does not count."""
    runs = [run("succeeded", 10, 0, 20), run("succeeded", 10, 20, 20_000), run("succeeded", 10, 20_000, 20_020)]
    runs += [run("running", 4, 20_020), run("failed", 1, 0, 1)]
    items = [item("succeeded", 10)] * 3 + [item("running", 4), item("failed", 1), item(None, 0)]
    assert seconds_left(items, len(items), runs) == pytest.approx(2 * (6 + 10))
    assert seconds_left(items, len(items) + 2, runs) == pytest.approx(2 * (6 + 10 + 20)), "runs still to be chosen"


def test_runs_that_train_at_once_share_the_rest() -> None:
    runs = [run("succeeded", 10, 0, 20), run("running", 5, 20), run("running", 5, 20)]
    assert seconds_left([item("succeeded", 10), item("running", 5), item("running", 5)], 3, runs) == pytest.approx(10)


def test_before_a_run_has_succeeded_those_that_train_are_the_measure() -> None:
    assert seconds_left([item("running", 0)], 1, [run("running", 0, time.time())]) is None
    assert seconds_left([item("running", 5)], 1, [run("running", 5, time.time() - 50)]) == pytest.approx(50, rel=0.1)

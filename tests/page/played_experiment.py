"""Plays the runs of an experiment: reports what a learner would, with numbers that differ by method, rate and seed."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from services.contracts.events import EvaluationFinished, Event, RunStateChanged, StepFinished
from tests.conftest import ROW
from tests.page.calls import get
from tests.page.conftest import Api
from tests.page.player import Player, step_metrics

RATES = (1e-4, 2e-4)
LEVELS = {"srpo": 0.86, "grpo": 0.78, "sdpo": 0.5}
"""Where each method ends at the better rate."""


def experiment_file(folder: Path, methods: tuple[str, ...], *, tuning: int, final: int, steps: int) -> dict[str, Any]:
    """An experiment with `tuning` and `final` seeds whose model and data exist."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/config.json").write_text("{}")
    for name in ("train", "validation", "test"):
        (folder / f"{name}.jsonl").write_text(ROW)
    return {
        "name": "rates",
        "description": "Does SRPO beat GRPO on our questions?",
        "run": {
            "model": {"path": str(folder / "model")},
            "data": {"train": str(folder / "train.jsonl")},
            "training": {"steps": steps},
        },
        "methods": {method: {"objective": {"name": method}} for method in methods},
        "baseline": "grpo",
        "tuning": {
            "seeds": list(range(101, 101 + tuning)),
            "grid": {"optimizer.learning_rate": list(RATES)},
            "changes": {"data": {"validation": str(folder / "validation.jsonl")}},
        },
        "final": {
            "seeds": list(range(1, 1 + final)),
            "changes": {"data": {"validation": str(folder / "test.jsonl")}},
        },
        "budgets": {"steps": [steps // 2, steps], "seconds": [steps]},
        "claims": [
            {"claim": "SRPO ends above GRPO", "higher": {"method": "srpo"}, "lower": {"method": "grpo"}},
            {"claim": "GRPO ends above SRPO", "higher": {"method": "grpo"}, "lower": {"method": "srpo"}},
        ],
    }


def play_waiting(api: Api, player: Player, experiment_id: str) -> None:
    """Report everything that a learner would about the experiment's unfinished runs, until they succeed."""
    for run in get(api, f"/v1/experiments/{experiment_id}")["runs"]:
        if run["state"] in ("queued", "starting", "running"):
            said: dict[str, Any] = {"run_id": run["run_id"], "at": time.time()}
            player.emit(RunStateChanged(state="starting", **said), RunStateChanged(state="running", **said))
            player.emit(*_history(run, said), RunStateChanged(state="succeeded", **said))


def _history(run: dict[str, Any], said: dict[str, Any]) -> list[Event]:
    rate = run["values"]["optimizer.learning_rate"]
    level = LEVELS[run["method"]] - (0.0 if rate == RATES[1] else 0.1) + 0.004 * math.sin(7 * run["seed"])
    events: list[Event] = []
    for step in range(run["num_steps"] + 1):
        if step:
            metrics = step_metrics(step, level - 0.8)
            if run["method"] == "grpo":
                metrics = {name: value for name, value in metrics.items() if "teacher" not in name}
            events.append(StepFinished(step=step, metrics=metrics, **said))
        if step % max(1, run["num_steps"] // 6) == 0:
            accuracy = 0.2 + (level - 0.2) * (1 - math.exp(-4 * step / run["num_steps"]))
            shown: dict[str, Any] = {
                "split": "validation",
                "num_questions": 64,
                "num_samples": 16,
                "pass_at_k": min(1.0, accuracy + 0.1),
            }
            events.append(EvaluationFinished(step=step, accuracy=accuracy, **shown, **said))
    return events

"""A run's history as the API tells it, without a server; and an exporter in a process that kills itself."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.contracts.errors import NotFoundError
from services.contracts.records import Checkpoint, Run, RunEvent
from turnout.trackers.base import Place
from turnout.trackers.loop import Exporter
from turnout.trackers.registry import load

STEPS = 12


def numbers_of(step: int) -> dict[str, float]:
    return {"reward_mean": step / 16, "loss": -step / 4, "seconds": 2.0}


def history(steps: int = STEPS, *, first_id: int = 40) -> list[RunEvent]:
    """Steps from 1, each with a group of samples every fifth; evaluations before and after; step 3 trained twice.

    The run has no curriculum, so the number of solved questions is not exported."""
    out: list[RunEvent] = []

    def add(kind: str, **data: Any) -> None:
        out.append(RunEvent(id=str(first_id + 3 * len(out)), type=kind, data={"at": 1000.0 + len(out), **data}))

    def evaluation(step: int) -> None:
        kinds = {"mcq": 0.5, "math": 0.25}
        numbers = {"accuracy": 0.25 + step / 32, "pass_at_k": 0.75, "num_samples": 4, "accuracy_by_kind": kinds}
        add("evaluation", step=step, split="validation", **numbers)

    add("state", state="running", reason="")
    evaluation(0)
    for step in range(1, steps + 1):
        add("step", step=step, metrics=numbers_of(step) | {"num_solved_questions": 0.0}, groups={})
        add("weights", version=step)
        if step % 5 == 0:
            add("samples", step=step, group_id=f"g{step}", question_id="q", num_samples=2)
            add("checkpoint", step=step, path=f"/nowhere/step-{step:08d}", bytes=1, seconds=0.1)
        if step == 3:
            add("step", step=step, metrics={"reward_mean": 9.0}, groups={})
            evaluation(0)
    evaluation(steps)
    return out


def run_of(run_id: str, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "name": f"run {run_id}",
        "state": "succeeded",
        "step": STEPS,
        "num_steps": STEPS,
        "objective": "srpo",
        "created_at": 900.0,
        "started_at": 950.0,
        "finished_at": 1100.0,
        "config": {"model": {"path": "m", "lora": None}, "training": {"steps": STEPS}, "data": {"train": ["a", "b"]}},
    }
    return Run(id=run_id, **values | changes)


class PlayedApi:
    """What an exporter asks of the client."""

    url = "http://127.0.0.1:8400"

    def __init__(self, *runs: Run) -> None:
        self.all = {run.id: run for run in runs}
        self.histories = {run.id: history() for run in runs}
        self.folders: dict[str, Path] = {}

    def runs(self, *, state: list[str] | None = None) -> Iterator[Run]:
        newest_first = sorted(self.all.values(), key=lambda run: -run.created_at)
        return iter([run for run in newest_first if state is None or run.state in state])

    def run(self, run_id: str) -> Run:
        if run_id not in self.all:
            raise NotFoundError(f"There is no run {run_id}.")
        return self.all[run_id]

    def events(self, run_id: str, *, after: str, follow: bool) -> Iterator[RunEvent]:
        assert not follow
        yield from [event for event in self.histories[run_id] if int(event.id) > int(after)]

    def samples(self, run_id: str, *, step: int, limit: int) -> list[dict[str, Any]]:
        sample = {"text": "a | b\nc", "tokens": ["a", "b"], "reward": 1.0, "correct": True, "route": "grpo"}
        samples = [{**sample, "index": index, "advantage": 0.5, "feedback": ""} for index in range(2)]
        group = {"group_id": f"g{step}", "question_id": "q", "prompt": "Which?", "answer": "A", "samples": samples}
        return [{**group, "group_id": "another"}, group]

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        folder = self.folders.get(run_id)
        if folder is None:
            return []
        return [
            Checkpoint(step=step, at=0.0, path=str(folder), bytes=1, seconds=0.1, exists=step == STEPS)
            for step in (5, STEPS)
        ]

    def change(self, run_id: str, **changes: Any) -> None:
        self.all[run_id] = run_of(run_id, **changes)


def exporter_of(api: PlayedApi, tracker: Any, folder: Path, **options: Any) -> Exporter:
    values: dict[str, Any] = {
        "page_url": "https://turnout.example/",
        "samples": True,
        "artifacts": "none",
        "tell": lambda run: None,
        "warn": print,
    }
    values |= options
    place = Place("project", folder, artifacts=values["artifacts"] != "none")
    kind = load(tracker) if isinstance(tracker, str) else tracker
    folder.mkdir(exist_ok=True)
    return Exporter(api, kind, place, **values)  # type: ignore[arg-type]


def killing(kind: Any) -> Any:
    """The tracker, whose process is killed before it writes step 9, right after that of another run was saved."""

    class Killing(kind):
        def numbers(self, numbers: Any) -> None:
            if numbers.step == 9:
                os.kill(os.getpid(), signal.SIGKILL)
            super().numbers(numbers)
            if numbers.step == 7:
                self.save()  # written, and not yet noted

    return Killing


if __name__ == "__main__":
    tracker, folder = sys.argv[1], Path(sys.argv[2])
    exporter_of(PlayedApi(run_of("r1")), killing(load(tracker)), folder).round()
    sys.exit("it was not killed")

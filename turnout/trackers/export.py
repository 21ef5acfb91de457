"""Exports one run: reads its events after the last exported one, and writes them to a tracker."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from services.contracts.records import Run, RunEvent
from services.contracts.step_metrics import CATALOGUE, StepMetric
from turnout.client.client import Client
from turnout.trackers.base import Numbers, Place, Samples, TrackedRun, Tracker, plain_rows
from turnout.trackers.progress import Progress, ProgressFiles

SAVE_EVERY: Final = 500
"""Events between two saves while a long history is exported."""
EVALUATED: Final = ("accuracy", "pass_at_k", "response_tokens_mean", "truncated_ratio", "num_faults", "seconds")
CURRICULUM: Final = {
    metric.name
    for metric in CATALOGUE
    if isinstance(metric, StepMetric) and metric.line is not None and metric.line.chart == "curriculum"
}
"""Always 0 in a run without one, and TensorBoard would show their charts first."""
Artifacts = Literal["none", "last", "all"]


class RunExport:
    """One run on its way to one tracker."""

    def __init__(
        self,
        client: Client,
        run_id: str,
        kind: type[Tracker],
        place: Place,
        files: ProgressFiles,
        *,
        page_url: str,
        samples: bool,
        artifacts: Artifacts,
        warn: Callable[[str], None],
    ) -> None:
        self.run_id = run_id
        self._client = client
        self._kind = kind
        self._place = place
        self._files = files
        self._page_url = page_url
        self._with_samples = samples
        self._artifacts = artifacts
        self._warn = warn
        self.is_complete = False
        """Whether the run has ended and its end has been exported."""
        self._progress = files.read(run_id)
        self._tracker: Tracker | None = None
        self._left_out: set[str] = set()

    def advance(self) -> Run | None:
        """Export everything that has happened so far. Returns the run if this exported its end. Raises what API and
        tracker raise."""
        run = self._client.run(self.run_id)
        self.is_complete = run.has_ended and run.finished_at == self._progress.ended_at
        if self.is_complete:
            return None
        tracker = self._open(run)
        count = 0
        for event in self._client.events(self.run_id, after=self._progress.event, follow=False):
            self._take(tracker, event)
            self._progress.event = event.id
            count += 1
            if count % SAVE_EVERY == 0:
                self._save(tracker)
        if run.has_ended:
            self._end(tracker, run)
            return run
        if count:
            self._save(tracker)
        return None

    def close(self) -> None:
        """Release the tracker; whatever it had not confirmed is exported again."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.close(None)

    def forget(self) -> None:
        """After an error: return to what was confirmed."""
        try:
            self.close()
        finally:
            self._progress = self._files.read(self.run_id)

    def _open(self, run: Run) -> Tracker:
        if self._tracker is None:
            saved = self._progress.saved
            if self._kind.rewrites:
                self._progress = Progress(saved=saved)
            self._left_out = set() if run.config["data"].get("curriculum") else CURRICULUM
            tracked = TrackedRun(run, f"{self._page_url.rstrip('/')}/#/runs/{run.id}")
            self._tracker = self._kind(tracked, self._place, saved)
            self._save(self._tracker)  # a tracker must find its run again, however soon this process ends
        return self._tracker

    def _save(self, tracker: Tracker) -> None:
        self._progress.saved = tracker.save()
        self._files.write(self.run_id, self._progress)

    def _end(self, tracker: Tracker, run: Run) -> None:
        if self._artifacts == "last":
            written = [item for item in self._client.checkpoints(self.run_id) if item.exists]
            if written:
                newest = max(written, key=lambda item: item.step)
                self._send(tracker, newest.step, newest.path)
        self._progress.saved = tracker.save()
        self._tracker = None
        tracker.close(run)
        self._progress.ended_at = run.finished_at
        self._files.write(self.run_id, self._progress)
        self.is_complete = True

    def _take(self, tracker: Tracker, event: RunEvent) -> None:
        data = event.data
        if event.type == "step" and data["step"] > self._progress.step:
            self._numbers(tracker, event, data["metrics"])
            self._progress.step = data["step"]
        elif event.type == "evaluation" and self._is_new(f"{data['split']}@{data['step']}"):
            self._numbers(tracker, event, evaluation_values(data))
        elif event.type == "samples" and self._with_samples and self._is_new(f"{data['group_id']}@{data['step']}"):
            self._samples(tracker, event)
        elif event.type == "checkpoint" and self._artifacts == "all":
            self._send(tracker, data["step"], data["path"])

    def _is_new(self, name: str) -> bool:
        if name in self._progress.done:
            return False
        self._progress.done.add(name)
        return True

    def _numbers(self, tracker: Tracker, event: RunEvent, values: Mapping[str, Any]) -> None:
        finite = {
            name: float(value)
            for name, value in values.items()
            if value is not None and math.isfinite(value) and name not in self._left_out
        }
        tracker.numbers(Numbers(int(event.id), event.data["step"], event.data["at"], finite))

    def _samples(self, tracker: Tracker, event: RunEvent) -> None:
        step, name = event.data["step"], event.data["group_id"]
        for group in self._client.samples(self.run_id, step=step, limit=200):
            if group["group_id"] == name:
                tracker.samples(Samples(int(event.id), step, event.data["at"], name, plain_rows(step, group)))

    def _send(self, tracker: Tracker, step: int, path: str) -> None:
        folder = Path(path) / "hf"
        if folder.is_dir():
            tracker.files(step, folder)
        else:
            self._warn(f"{self.run_id}: the checkpoint of step {step} is not on this machine ({folder}).")


def evaluation_values(data: Mapping[str, Any]) -> dict[str, float]:
    """An evaluation's numbers by name: `evaluation/validation/accuracy`, and `.../accuracy/<kind>` of each kind."""
    head = f"evaluation/{data['split']}"
    values = {f"{head}/{name}": data[name] for name in EVALUATED if data.get(name) is not None}
    kinds = data.get("accuracy_by_kind") or {}
    return values | {f"{head}/accuracy/{kind}": value for kind, value in kinds.items()}

"""trackio: its local project (TRACKIO_DIR). `trackio sync` publishes a project as a Space.

A run is written from its first event whenever it is opened, and replaces what was there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import trackio
from trackio import context_vars

from services.contracts.records import Run
from turnout.trackers.base import COLUMNS, Numbers, Place, Samples, TrackedRun


class TrackioTracker:
    """A run in a trackio project."""

    rewrites: ClassVar[bool] = True

    def __init__(self, tracked: TrackedRun, place: Place, saved: Mapping[str, Any]) -> None:
        run = tracked.run
        with contextlib.suppress(ValueError):  # there is no project yet
            for earlier in trackio.Api().runs(place.project):
                if earlier.name == run.id:
                    earlier.delete()
        context_vars.current_run.set(None)  # `init` would end the run that was opened before
        with contextlib.redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=place.project,
                name=run.id,
                config={**run.config, "turnout": {"name": run.name, **tracked.facts}},
                resume="never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def numbers(self, numbers: Numbers) -> None:
        self._run.log(dict(numbers.values), step=numbers.step)

    def samples(self, samples: Samples) -> None:
        table = trackio.Table(columns=list(COLUMNS), data=[list(row) for row in samples.rows])
        self._run.log({"samples": table}, step=samples.step)

    def files(self, step: int, folder: Path) -> None:
        artifact = trackio.Artifact(f"{self._run.name}-checkpoint", type="model", metadata={"step": step})
        artifact.add_dir(str(folder))
        self._run.log_artifact(artifact)

    def save(self) -> dict[str, Any]:
        return {}

    def close(self, run: Run | None) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            if run is not None:
                self._run.alert(title=f"{run.name}: {run.state}", text=run.reason or f"{run.step} steps")
            self._run.finish()

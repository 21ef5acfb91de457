"""Weights & Biases, online or offline (WANDB_MODE), with the settings of its own variables (WANDB_API_KEY, ...).

A run is written from its first event whenever it is opened. W&B's own step is the event's id: online, rows up to the
last one that the server has are left out by W&B itself; offline, the run's earlier folder is replaced. Charts use the
training step, which every row contains.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import wandb

from services.contracts.records import Run
from turnout.trackers.base import COLUMNS, Numbers, Place, Samples, TrackedRun

SETTINGS = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "silent": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
}
"""W&B would otherwise record this machine and its Git repository, which have nothing to do with the run."""


class WandbTracker:
    """A run at Weights & Biases."""

    rewrites: ClassVar[bool] = True

    def __init__(self, tracked: TrackedRun, place: Place, saved: Mapping[str, Any]) -> None:
        run = tracked.run
        for earlier in (place.folder / "wandb").glob(f"offline-run-*-{run.id}"):
            shutil.rmtree(earlier)
        self._run = wandb.init(
            project=place.project,
            id=run.id,
            name=run.name,
            notes=tracked.url,
            tags=[run.objective] if run.objective else None,
            config={**run.config, "turnout": tracked.facts},
            dir=str(place.folder),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**SETTINGS),
        )
        self._run.define_metric("*", step_metric="step")

    def numbers(self, numbers: Numbers) -> None:
        self._run.log({**numbers.values, "step": numbers.step, "_timestamp": numbers.at}, step=numbers.event)

    def samples(self, samples: Samples) -> None:
        table = wandb.Table(columns=list(COLUMNS), data=[list(row) for row in samples.rows])
        self._run.log({"samples": table, "step": samples.step, "_timestamp": samples.at}, step=samples.event)

    def files(self, step: int, folder: Path) -> None:
        artifact = wandb.Artifact(f"{self._run.id}-checkpoint", type="model", metadata={"step": step})
        artifact.add_dir(str(folder))
        self._run.log_artifact(artifact, aliases=[f"step-{step}", "latest"])

    def save(self) -> dict[str, Any]:
        """W&B does not say what is durable; the run is written again from its first event if need be."""
        return {}

    def close(self, run: Run | None) -> None:
        if run is not None:
            self._run.summary.update({"turnout/state": run.state, "turnout/reason": run.reason})
        self._run.finish(exit_code=1 if run is not None and run.state == "failed" else 0)

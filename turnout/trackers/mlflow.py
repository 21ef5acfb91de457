"""MLflow: the server of MLFLOW_TRACKING_URI. The project is its experiment.

A run is found again by its tag `turnout.run_id`. Points that are sent twice are the same to MLflow's database, since
their time and value are those of the run's event.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from services.contracts.records import Run
from turnout.trackers.base import COLUMNS, Numbers, Place, Samples, TrackedRun, flat

STATUS: Final = {"succeeded": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
BATCH: Final = 1000
"""Metrics that MLflow takes in one request."""
PARAMETERS: Final = 100
LONGEST_PARAMETER: Final = 6000
TABLES: Final = "mlflow.loggedArtifacts"
"""The tag by which MLflow's page knows that an artifact is a table."""
KIND: Final = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's page show training runs and charts instead of traces and prompts."""
_NOT_IN_NAMES = re.compile(r"[^\w\-./: ]", re.ASCII)
TABLES_SHOWN: Final = 60
"""The tag's value is at most 5,000 characters long."""


class MlflowTracker:
    """A run at an MLflow server."""

    rewrites: ClassVar[bool] = False

    def __init__(self, tracked: TrackedRun, place: Place, saved: Mapping[str, Any]) -> None:
        self._client = MlflowClient()
        self._pending: list[Metric] = []
        self._tables: list[str] = list(saved.get("tables", []))
        self._id: str = saved.get("id") or self._found_or_made(tracked, place.project)
        self._client.update_run(self._id, status="RUNNING")

    def _found_or_made(self, tracked: TrackedRun, project: str) -> str:
        run = tracked.run
        experiment = _experiment(self._client, project)
        found = self._client.search_runs([experiment], f"tags.`turnout.run_id` = '{run.id}'", max_results=1)
        if found:
            made = found[0]
        else:
            made = self._client.create_run(
                experiment,
                start_time=_milliseconds(run.started_at or run.created_at),
                tags={f"turnout.{name}": text for name, text in tracked.facts.items()}
                | {"mlflow.source.name": "turnout"},
                run_name=run.name,
            )
        run_id: str = made.info.run_id
        tags = [RunTag("mlflow.note.content", f"[{run.name} in Turnout]({tracked.url})")]
        self._client.log_batch(run_id, tags=tags)
        parameters = [Param(_name(name), _text(value)) for name, value in flat(run.config).items()]
        for start in range(0, len(parameters), PARAMETERS):
            self._client.log_batch(run_id, params=parameters[start : start + PARAMETERS])
        self._client.log_dict(run_id, run.config, "configuration.json")
        return run_id

    def numbers(self, numbers: Numbers) -> None:
        at = _milliseconds(numbers.at)
        self._pending += [Metric(_name(name), value, at, numbers.step) for name, value in numbers.values.items()]
        if len(self._pending) >= BATCH:
            self._send()

    def _send(self) -> None:
        while self._pending:
            self._client.log_batch(self._id, metrics=self._pending[:BATCH])
            del self._pending[:BATCH]

    def samples(self, samples: Samples) -> None:
        path = f"samples/step-{samples.step:08d}-{samples.group}.json"
        self._client.log_dict(self._id, {"columns": list(COLUMNS), "data": [list(row) for row in samples.rows]}, path)
        self._tables = [*(known for known in self._tables if known != path), path][-TABLES_SHOWN:]
        shown = json.dumps([{"path": known, "type": "table"} for known in self._tables])
        self._client.set_tag(self._id, TABLES, shown)

    def files(self, step: int, folder: Path) -> None:
        self._client.log_artifacts(self._id, str(folder), f"checkpoints/step-{step:08d}")

    def save(self) -> dict[str, Any]:
        self._send()
        return {"id": self._id, "tables": self._tables}

    def close(self, run: Run | None) -> None:
        if run is None:
            return
        self._client.set_tag(self._id, "turnout.state", run.state)
        if run.reason:
            self._client.set_tag(self._id, "turnout.reason", run.reason)
        ended = None if run.finished_at is None else _milliseconds(run.finished_at)
        self._client.set_terminated(self._id, STATUS[run.state], ended)


def _experiment(client: MlflowClient, name: str) -> str:
    """Id of the experiment, which another exporter may create at the same time."""
    found = client.get_experiment_by_name(name)
    if found is None:
        with contextlib.suppress(MlflowException):
            client.create_experiment(name, tags=KIND)
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage == "deleted":
        raise MlflowException(f"The experiment {name} was deleted. Restore it, or choose another --project.")
    experiment_id: str = found.experiment_id
    return experiment_id


def _name(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)


def _milliseconds(at: float) -> int:
    return round(at * 1000)


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:LONGEST_PARAMETER]

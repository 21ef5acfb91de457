"""TensorBoard: one event file per run, in `<folder>/<name> <run id>/`, which is how TensorBoard calls the run.

Metrics are grouped as the page's charts: TensorBoard makes a section of what comes before the first slash of a tag. The
file is cut to the length that was saved last before anything is appended, so that no point is there twice.
TensorBoard's own writer would start another file each time, and does not say what is durable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from services.contracts.errors import ConfigurationError
from services.contracts.records import Run
from services.contracts.step_metrics import CATALOGUE, StepMetric
from turnout.trackers.base import COLUMNS, Numbers, Place, Samples, TrackedRun, flat

LONGEST_CELL = 2000
SECTIONS = {metric.name: metric.line.chart for metric in CATALOGUE if isinstance(metric, StepMetric) and metric.line}
"""The section of each metric that has a chart; the others are in `step`."""
_AS_IS = str.maketrans({mark: f"&#{ord(mark)};" for mark in "&<>\\`*_[]|~"} | {"\n": "<br>"})
"""What Markdown would take for markup, such as a product in an answer."""


class TensorboardTracker:
    """A run as TensorBoard's files."""

    rewrites: ClassVar[bool] = False

    def __init__(self, tracked: TrackedRun, place: Place, saved: Mapping[str, Any]) -> None:
        if place.artifacts:
            raise ConfigurationError(
                "TensorBoard has no artifacts.", remedy="Leave out --artifacts.", field="--artifacts"
            )
        run = tracked.run
        self._folder = saved.get("folder", run.id if saved else f"{run.name} {run.id}")
        folder = place.folder / self._folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"events.out.tfevents.{int(run.created_at):010d}.turnout"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        length = saved.get("length", 0)
        if os.fstat(descriptor).st_size < length:
            raise ConfigurationError(
                f"{path} is shorter than what was exported to it.",
                remedy=f"Delete {folder} and the file {run.id}.json next to it to export the run again.",
            )
        os.ftruncate(descriptor, length)
        self._file = open(descriptor, "ab")  # noqa: SIM115 - open until close()
        self._writer = RecordWriter(self._file)
        if not saved:
            self._put(Event(wall_time=run.created_at, file_version="brain.Event:2"))
            facts = _table([("name", run.name), *tracked.facts.items()], header=("run", ""))
            self._text("run", f"{facts}\n\n[The run in Turnout]({tracked.url})", 0, run.created_at)
            config = [(name, _text(value)) for name, value in flat(run.config).items()]
            self._text("configuration", _table(config, header=("field", "value")), 0, run.created_at)

    def _put(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())

    def _text(self, tag: str, text: str, step: int, at: float) -> None:
        self._put(Event(step=step, wall_time=at, summary=text_pb(tag, text)))

    def numbers(self, numbers: Numbers) -> None:
        summary = Summary()
        for name, value in numbers.values.items():
            tag = name if "/" in name else f"{SECTIONS.get(name, 'step')}/{name}"
            summary.value.extend(scalar_pb(tag, value).value)
        self._put(Event(step=numbers.step, wall_time=numbers.at, summary=summary))

    def samples(self, samples: Samples) -> None:
        rows = [tuple(str(cell) for cell in row) for row in samples.rows]
        self._text("samples", _table(rows, header=COLUMNS), samples.step, samples.at)

    def files(self, step: int, folder: Path) -> None:
        raise NotImplementedError

    def save(self) -> dict[str, Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"length": self._file.tell(), "folder": self._folder}

    def close(self, run: Run | None) -> None:
        if run is not None:
            state = [("state", run.state), ("reason", run.reason), ("steps", f"{run.step} of {run.num_steps}")]
            self._text("state", _table(state, header=("run", "")), run.step, run.finished_at or run.created_at)
        self._file.close()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * len(header), *lines[1:]])


def _cell(text: str) -> str:
    return text[:LONGEST_CELL].translate(_AS_IS)

"""What an exporter hands to a tracker, and what a tracker must offer. Packages may bring their own.

    [project.entry-points."turnout.trackers"]
    mine = "my_package.tracker:MyTracker"

`turnout track --to mine` then uses it. docs/trackers.md has an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from services.contracts.records import Run

COLUMNS = (
    "step",
    "group",
    "question",
    "prompt",
    "answer",
    "index",
    "text",
    "reward",
    "correct",
    "route",
    "advantage",
    "tokens",
    "feedback",
)
"""Columns of a table of samples."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tracker puts runs."""

    project: str
    """Project or experiment that the runs belong to."""
    folder: Path
    """For local files; exists."""
    artifacts: bool = False
    """Whether checkpoints will be sent. A tracker that has no place for them raises `ConfigurationError`."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run that is exported."""

    run: Run
    """With its whole configuration."""
    url: str
    """Its page."""

    @property
    def facts(self) -> dict[str, str]:
        """What identifies the run, for tags."""
        run = self.run
        facts = {"run_id": run.id, "objective": run.objective, "url": self.url}
        if run.forked_from is not None:
            facts["forked_from"] = f"{run.forked_from.run_id}:{run.forked_from.step}"
        return facts


@dataclass(frozen=True, slots=True)
class Numbers:
    """Values at one training step."""

    event: int
    """Id of the event; increases within a run, and the same event always has the same."""
    step: int
    at: float
    """Unix time in seconds."""
    values: Mapping[str, float]
    """Finite numbers by name: metrics of the step, or `evaluation/<split>/<name>`."""


@dataclass(frozen=True, slots=True)
class Samples:
    """One group of rollouts."""

    event: int
    step: int
    at: float
    group: str
    """Id of the group."""
    rows: Sequence[Sequence[Any]]
    """One per rollout, with the values of `COLUMNS`."""


class Tracker(Protocol):
    """One run at one tracker.

    Any method may raise. The exporter then closes the tracker and tries again later, from the last event that `save`
    confirmed. What was written after that is written again, so it must be found and not be doubled.
    """

    rewrites: ClassVar[bool]
    """Whether a tracker that is opened always gets the run from its first event, and replaces what it wrote earlier.
    Otherwise it gets the events after those that `save` confirmed."""

    def __init__(self, tracked: TrackedRun, place: Place, saved: Mapping[str, Any]) -> None:
        """Open the run, or continue it. `saved` is what `save` returned last; empty at first."""

    def numbers(self, numbers: Numbers) -> None:
        """Write numbers."""

    def samples(self, samples: Samples) -> None:
        """Write a group of rollouts as a table, if the tracker has tables."""

    def files(self, step: int, folder: Path) -> None:
        """Store the folder of a checkpoint as an artifact."""

    def save(self) -> dict[str, Any]:
        """Make everything so far durable. Returns what is needed to continue, as JSON values."""

    def close(self, run: Run | None) -> None:
        """Release the run. `run` has its final state if the run has ended; None if it may continue."""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as one level: `{"model": {"path": "m"}}` becomes `{"model.path": "m"}`."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out


def plain_rows(step: int, group: Mapping[str, Any]) -> list[list[Any]]:
    """Rows of `COLUMNS` from a group as the API returns it."""
    head = [step, group["group_id"], group["question_id"], group["prompt"], group["answer"]]
    return [
        [
            *head,
            *(item[name] for name in ("index", "text", "reward", "correct", "route", "advantage")),
            len(item["tokens"]),
            item["feedback"],
        ]
        for item in group["samples"]
    ]

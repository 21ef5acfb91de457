"""What the API says of runs. Times are Unix seconds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.api.storage.runs import Run
from services.contracts.model import MAX_INTEGER, Section
from services.contracts.run_config import NAME_PATTERN
from services.contracts.states import DesiredState, RunState

MAX_DEPTH = 10


class ForkedFrom(BaseModel):
    """Where a run comes from."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    run_id: str
    """The parent; it may have been deleted since."""
    step: int
    """Step of the parent's checkpoint that the run began with."""


class ForkRequest(Section):
    """How a fork differs from its parent."""

    checkpoint: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """Step of the checkpoint to begin with; null: the newest."""
    name: Annotated[str, Field(min_length=1, max_length=100, pattern=NAME_PATTERN)] | None = None
    """The new run's name; null: `<parent's name> from <step>`."""
    changes: dict[str, Any] = {}
    """Part of a run configuration, laid on the parent's section by section. `model` cannot change."""

    @field_validator("changes")
    @classmethod
    def plain(cls, changes: dict[str, Any]) -> dict[str, Any]:
        """Refuse what no configuration holds and no digest can be made of, before the fields are looked at."""
        level: list[Any] = [changes]
        for _ in range(MAX_DEPTH):
            level = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
            if any(isinstance(item, int) and abs(item) > MAX_INTEGER for item in level):
                raise ValueError(f"integers go up to {MAX_INTEGER}")
            level = [item for item in level if isinstance(item, dict | list)]
        if level:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        return changes


class RunSummary(BaseModel):
    """A run without its configuration."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    id: str
    name: str
    state: RunState
    reason: str
    """Why the run is in its state; empty where that needs no word."""
    desired: DesiredState
    """What was asked for last."""
    created_at: float
    queued_at: float
    started_at: float | None
    finished_at: float | None
    step: int
    """Newest training step finished."""
    num_steps: int
    """Training steps asked for."""
    objective: str
    learner: str | None
    rollout_servers: list[str]
    metrics: dict[str, float] = {}
    """Metrics of the newest step."""
    forked_from: ForkedFrom | None = None
    """The run and the step that this one began with; null where it began with its model."""


class RunDetail(RunSummary):
    """A run with its configuration."""

    config: dict[str, Any]
    """The whole configuration, every default filled in."""
    groups: dict[str, int] = {}
    """Ledger of prompt groups: fed, trained, in_flight, dropped_<reason>."""
    accuracy_first: float | None = None
    """avg@k of the first evaluation."""
    accuracy_last: float | None = None
    """avg@k of the newest evaluation."""


class RunPage(BaseModel):
    items: list[RunSummary]
    next_cursor: str | None
    """Pass as `cursor` to get the next page; null at the end."""


def summary_fields(run: Run) -> dict[str, Any]:
    """The fields of `RunSummary` that the table of runs knows."""
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state,
        "reason": run.reason,
        "desired": run.desired,
        "created_at": run.created_at,
        "queued_at": run.queued_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "step": run.step,
        "num_steps": run.config["training"]["steps"],
        "objective": run.config["objective"]["name"],
        "learner": run.learner,
        "rollout_servers": run.rollout_servers,
        "forked_from": None
        if run.forked_from_run is None
        else ForkedFrom(run_id=run.forked_from_run, step=run.forked_from_step or 0),
    }

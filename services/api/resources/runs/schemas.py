"""Requests and responses about runs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from services.api.http.records import NEXT_CURSOR, listing, schema
from services.api.storage import runs as repository
from services.contracts.model import MAX_INTEGER, Section
from services.contracts.records import ForkedFrom, Run
from services.contracts.run_config import NAME_PATTERN

MAX_DEPTH = 10
TAG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,39}$"
Priority = Annotated[int, Field(ge=-100, le=100)]


class ForkRequest(Section):
    """How a fork differs from its parent."""

    checkpoint: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """Step of the checkpoint to start from; null for the newest."""
    name: Annotated[str, Field(min_length=1, max_length=100, pattern=NAME_PATTERN)] | None = None
    """The new run's name; null for `<parent's name> from <step>`."""
    changes: dict[str, Any] = {}
    """Part of a run configuration, merged into the parent's section by section. `model` cannot change."""

    @field_validator("changes")
    @classmethod
    def plain(cls, changes: dict[str, Any]) -> dict[str, Any]:
        """Reject values that no configuration has and that cannot be hashed, before the fields are validated."""
        level: list[Any] = [changes]
        for _ in range(MAX_DEPTH):
            level = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
            if any(isinstance(item, int) and abs(item) > MAX_INTEGER for item in level):
                raise ValueError(f"integers go up to {MAX_INTEGER}")
            level = [item for item in level if isinstance(item, dict | list)]
        if level:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        return changes


class RunChanges(Section):
    """What may change about a run at any time. Fields that are not sent stay as they are."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=NAME_PATTERN)] | None = None
    priority: Priority | None = None
    """Of queued runs, the one with the highest priority starts first. It interrupts no run in progress."""
    tags: Annotated[list[Annotated[str, Field(pattern=TAG_PATTERN)]], Field(max_length=20)] | None = None
    """Replace all tags."""
    note: Annotated[str, Field(max_length=10_000)] | None = None


DETAILS = ("config", "notices", "note", "groups", "accuracy_first", "accuracy_last")
RunSummary = schema("RunSummary", Run, hidden=DETAILS)
RunDetail = schema("RunDetail", Run, hidden=("fields",))
RunPage = listing("RunPage", RunSummary, **NEXT_CURSOR)


def shown(row: repository.Run, **details: Any) -> Run:
    """The record of a row, with `details` that the table of runs does not have."""
    origin = row.forked_from_run
    return Run(
        id=row.id,
        name=row.name,
        state=row.state,
        reason=row.reason,
        desired=row.desired,
        created_at=row.created_at,
        queued_at=row.queued_at,
        priority=row.priority,
        created_by=row.created_by,
        tags=row.tags,
        note=row.note,
        started_at=row.started_at,
        finished_at=row.finished_at,
        step=row.step,
        num_steps=row.config["training"]["steps"],
        objective=row.config["objective"]["name"],
        learner=row.learner,
        rollout_servers=row.rollout_servers,
        forked_from=None if origin is None else ForkedFrom(run_id=origin, step=row.forked_from_step or 0),
        config=row.config,
        **details,
    )

"""From an event of the wire to what the database keeps of it: its natural key, its type, its rows."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import msgspec
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from services.api.storage.database import Base
from services.api.storage.tables.history import CheckpointRow, EvaluationRow, SampleRow, StepRow
from services.contracts import events

TYPES: dict[type[events.Event], str] = {
    events.RunStateChanged: "state",
    events.StepFinished: "step",
    events.EvaluationFinished: "evaluation",
    events.CheckpointWritten: "checkpoint",
    events.WeightsPublished: "weights",
    events.Note: "note",
    events.SamplesTaken: "samples",
}


def natural_key(event: events.Event) -> str:
    """The same for every delivery of one event; other for a step that is trained again (its time differs)."""
    match event:
        case events.RunStateChanged():
            key = f"{event.state}"
        case events.StepFinished() | events.CheckpointWritten():
            key = f"{event.step}"
        case events.EvaluationFinished():
            key = f"{event.step}:{event.split}:{event.num_samples}"
        case events.WeightsPublished():
            key = f"{event.version}"
        case events.SamplesTaken():
            key = f"{event.step}:{event.group_id}"
        case events.Note():
            key = hashlib.sha256(f"{event.source}:{event.text}".encode()).hexdigest()[:16]
        case _:
            key = ""
    return f"{TYPES[type(event)]}:{key}:{event.at!r}"[:255]


def event_data(event: events.Event) -> dict[str, Any]:
    """What the event stream shows: the event's fields without the run id. Samples are named, not carried."""
    if isinstance(event, events.SamplesTaken):
        return {
            "at": event.at,
            "step": event.step,
            "group_id": event.group_id,
            "question_id": event.question_id,
            "num_samples": len(event.samples),
        }
    data: dict[str, Any] = msgspec.to_builtins(event)
    data.pop("run_id")
    data.pop("histograms", None)
    return data


async def store_rows(session: AsyncSession, event: events.Event) -> None:
    """Write the event's row of its own table, in place of an older one with the same key."""
    row: Base | None = None
    fields: dict[str, Any] = msgspec.to_builtins(event)
    match event:
        case events.StepFinished():
            row = StepRow(**fields)
        case events.EvaluationFinished():
            row = EvaluationRow(**fields)
        case events.CheckpointWritten():
            row = CheckpointRow(**fields)
        case events.SamplesTaken():
            row = SampleRow(**fields | {"samples": [_finite(sample) for sample in fields["samples"]]})
    if row is not None:
        await session.merge(row)


def _finite(sample: dict[str, Any]) -> dict[str, Any]:
    """The rollout with null for each number that is none, since it is sent on as it is stored, and JSON has no NaN."""
    return {name: _finite_value(value) for name, value in sample.items()}


def _finite_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list) and value and isinstance(value[0], float) and not math.isfinite(sum(value)):
        return [_finite_value(item) for item in value]
    return value


def insert_ignoring(session: AsyncSession, table: type[Base], values: dict[str, Any]) -> Any:
    """An INSERT that does nothing where a unique key is taken, for either database."""
    dialect = session.get_bind().dialect.name
    maker = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return maker(table).values(**values).on_conflict_do_nothing()

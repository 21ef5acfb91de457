"""Tables of runs' history, and queries on them.

The tables are derived from the records of `services.contracts`, so a field is defined there and in a migration.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    RowMapping,
    String,
    Table,
    Text,
    cast,
    func,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import TypeEngine

from services.api.storage.database import Base
from services.api.storage.event_log import KINDS, SERIAL, insert
from services.contracts import events
from services.contracts.records import WeightPush

R = TypeVar("R", bound=events.Event)
_TYPES: dict[Any, type[TypeEngine[Any]]] = {int: Integer, float: Float, str: Text}
"""Column types by the field's type; other fields are JSON."""
_LENGTHS = {"run_id": 64, "split": 100, "group_id": 200, "instance": 200, "transport": 16}
"""Maximum number of characters, for texts that have one."""


def _columns(record: type[events.Event], key: tuple[str, ...] = ()) -> list[Column[Any]]:
    def kind(field: msgspec.structs.FieldInfo) -> TypeEngine[Any]:
        if field.name in _LENGTHS:
            return String(_LENGTHS[field.name])
        return BigInteger() if field.name == "bytes" else _TYPES.get(field.type, JSON)()

    fields = msgspec.structs.fields(record)
    return [
        Column(field.name, kind(field), primary_key=field.name in key, nullable=field.default is msgspec.UNSET)
        for field in fields
    ]


def _table(name: str, event: type[events.Event]) -> Table:
    """A table with one row per natural key of the event."""
    return Table(name, Base.metadata, *_columns(event, ("run_id", *KINDS[event].key)))


STEPS = _table("steps", events.StepFinished)
EVALUATIONS = _table("evaluations", events.EvaluationFinished)
CHECKPOINTS = _table("checkpoints", events.CheckpointWritten)
SAMPLES = _table("samples", events.SamplesTaken)
WEIGHT_PUSHES = Table(
    "weight_pushes",
    Base.metadata,
    Column("id", SERIAL, primary_key=True, autoincrement=True),
    *_columns(WeightPush),
    Index(None, "run_id", "id"),
)
_TABLES: dict[type[events.Event], Table] = {
    events.StepFinished: STEPS,
    events.EvaluationFinished: EVALUATIONS,
    events.CheckpointWritten: CHECKPOINTS,
    events.SamplesTaken: SAMPLES,
    WeightPush: WEIGHT_PUSHES,
}
_ROLLOUTS = cast(SAMPLES.c.samples, Text)


async def store(session: AsyncSession, record: events.Event) -> None:
    """Write the record into its table, if it has one, replacing an older one with the same key."""
    table = _TABLES.get(type(record))
    if table is None:
        return
    fields: dict[str, Any] = msgspec.to_builtins(record)
    if "samples" in fields:
        fields["samples"] = [_finite(sample) for sample in fields["samples"]]
    query = insert(session, table).values(**fields)
    key = [column.name for column in table.primary_key if column.name in fields]
    if key:
        query = query.on_conflict_do_update(index_elements=key, set_=fields)
    await session.execute(query)


def _finite(sample: dict[str, Any]) -> dict[str, Any]:
    """The rollout with null in place of NaN and infinity: it is sent as it is stored, and JSON has neither."""
    return {name: _finite_value(value) for name, value in sample.items()}


def _finite_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list) and value and isinstance(value[0], float) and not math.isfinite(sum(value)):
        return [_finite_value(item) for item in value]
    return value


async def records(
    session: AsyncSession, kind: type[R], run_id: str, *order: ColumnElement[Any], limit: int | None = None
) -> list[R]:
    """A run's records of one class, in the given order; without fields that may be unset, which are long."""
    table = _TABLES[kind]
    columns = [column for column in table.c if column.name in kind.__struct_fields__ and not column.nullable]
    query = select(*columns).where(table.c.run_id == run_id).order_by(*order).limit(limit)
    return [kind(**row) for row in (await session.execute(query)).mappings()]


async def evaluations(session: AsyncSession, run_id: str) -> list[events.EvaluationFinished]:
    return await records(session, events.EvaluationFinished, run_id, EVALUATIONS.c.step, EVALUATIONS.c.split)


async def evaluated_questions(
    session: AsyncSession, run_id: str, step: int
) -> dict[str, list[events.QuestionCount] | None]:
    """Of the evaluation after a step: split to its questions; None if they were not reported."""
    table = EVALUATIONS.c
    query = select(table.split, table.questions).where(table.run_id == run_id, table.step == step)
    rows = await session.execute(query.order_by(table.split, table.at))
    return {split: msgspec.convert(found, list[events.QuestionCount] | None) for split, found in rows}


async def checkpoints(session: AsyncSession, run_id: str) -> list[events.CheckpointWritten]:
    return await records(session, events.CheckpointWritten, run_id, CHECKPOINTS.c.step)


async def weight_pushes(session: AsyncSession, run_id: str, limit: int | None = None) -> list[WeightPush]:
    """Newest first."""
    return await records(session, WeightPush, run_id, WEIGHT_PUSHES.c.id.desc(), limit=limit)


async def first_and_last_accuracy(session: AsyncSession, run_id: str, split: str) -> tuple[float | None, float | None]:
    """avg@k of the first and the newest evaluation of a split."""
    table = EVALUATIONS.c
    query = select(table.accuracy).where(table.run_id == run_id, table.split == split).limit(1)
    first = await session.scalar(query.order_by(table.step))
    return first, await session.scalar(query.order_by(table.step.desc()))


class StepNumbers(NamedTuple):
    """Numbers of one step without its histograms."""

    metrics: dict[str, float]
    groups: dict[str, int]


async def step_numbers(session: AsyncSession, run_id: str, step: int | None = None) -> StepNumbers | None:
    """Numbers of one step, or of the newest one."""
    query = select(STEPS.c.metrics, STEPS.c.groups).where(STEPS.c.run_id == run_id)
    if step is not None:
        query = query.where(STEPS.c.step == step)
    row = (await session.execute(query.order_by(STEPS.c.step.desc()).limit(1))).one_or_none()
    return None if row is None else StepNumbers(*row)


async def newest_metrics(session: AsyncSession, run_ids: Sequence[str], name: str) -> dict[str, float]:
    """One metric of each run's newest step, by run; runs without a step are missing."""
    newest = select(STEPS.c.run_id, func.max(STEPS.c.step).label("step")).where(STEPS.c.run_id.in_(run_ids))
    last = newest.group_by(STEPS.c.run_id).subquery()
    query = select(STEPS.c.run_id, STEPS.c.metrics).join(
        last, (STEPS.c.run_id == last.c.run_id) & (STEPS.c.step == last.c.step)
    )
    return {run_id: metrics[name] for run_id, metrics in await session.execute(query) if name in metrics}


async def step_metrics(session: AsyncSession, run_id: str) -> list[dict[str, float]]:
    """Metrics of every step, in order."""
    query = select(STEPS.c.metrics).where(STEPS.c.run_id == run_id).order_by(STEPS.c.step)
    return list((await session.scalars(query)).all())


async def steps_after(session: AsyncSession, run_id: str, after: int, limit: int) -> Sequence[RowMapping]:
    """Steps with a number above `after`, in order, without run and histograms. JSON fields are returned as text."""
    shown = [column for column in STEPS.c if column.name not in ("run_id", "histograms")]
    query = select(*(cast(item, Text).label(item.name) if isinstance(item.type, JSON) else item for item in shown))
    query = query.where(STEPS.c.run_id == run_id, STEPS.c.step > after).order_by(STEPS.c.step).limit(limit)
    return (await session.execute(query)).mappings().all()


class SampleKey(NamedTuple):
    """Identifies one stored group as it was at one moment: a step that is trained again replaces its groups."""

    step: int
    group_id: str
    at: float


async def sample_keys(session: AsyncSession, run_id: str, step: int | None, limit: int) -> list[SampleKey]:
    """Sampled groups of one step, or the newest ones of all."""
    chosen = [SAMPLES.c.run_id == run_id, *([] if step is None else [SAMPLES.c.step == step])]
    query = select(SAMPLES.c.step, SAMPLES.c.group_id, SAMPLES.c.at).where(*chosen)
    rows = await session.execute(query.order_by(SAMPLES.c.step.desc(), SAMPLES.c.group_id).limit(limit))
    return [SampleKey(*row) for row in rows]


async def sample_head(session: AsyncSession, run_id: str, key: SampleKey) -> tuple[dict[str, Any], int] | None:
    """The group's fields without its rollouts, and the length of the rollouts' JSON text; None if the group is gone."""
    columns = [column for column in SAMPLES.c if column.name not in ("run_id", "samples")]
    query = select(*columns, func.length(_ROLLOUTS).label("length")).where(*_named(run_id, key))
    row = (await session.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    fields = {name: value for name, value in row.items() if value is not None}
    return fields, fields.pop("length")


async def sampled_group(session: AsyncSession, run_id: str, step: int, group_id: str) -> dict[str, Any] | None:
    """A group as its JSON, in which log-probs can be null; None if it is not stored."""
    table = SAMPLES.c
    query = select(SAMPLES).where(table.run_id == run_id, table.step == step, table.group_id == group_id)
    row = (await session.execute(query)).mappings().one_or_none()
    return None if row is None else dict(row)


async def sample_piece(session: AsyncSession, run_id: str, key: SampleKey, start: int, length: int) -> str | None:
    """Up to `length` characters of the rollouts' JSON text, from the character `start` on; None if the group is
    gone."""
    query = select(func.substr(_ROLLOUTS, start + 1, length)).where(*_named(run_id, key))
    piece: str | None = await session.scalar(query)
    return piece


def _named(run_id: str, key: SampleKey) -> tuple[ColumnElement[bool], ...]:
    return (
        SAMPLES.c.run_id == run_id,
        SAMPLES.c.step == key.step,
        SAMPLES.c.group_id == key.group_id,
        SAMPLES.c.at == key.at,
    )


async def step_histograms(session: AsyncSession, run_id: str) -> AsyncIterator[tuple[int, dict[str, events.Histogram]]]:
    """Every step's number and histograms, in order. Reading its other columns too would take three times as long."""
    query = select(STEPS.c.step, STEPS.c.histograms).where(STEPS.c.run_id == run_id).order_by(STEPS.c.step)
    async for part in (await session.stream(query)).partitions(1000):
        for step, histograms in part:
            yield step, msgspec.convert(histograms, dict[str, events.Histogram])

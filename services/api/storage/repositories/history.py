"""Queries on the history of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Text, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.api.storage.tables.history import (
    CheckpointRow,
    EvaluationRow,
    EventRow,
    SampleRow,
    StepRow,
    WeightPushRow,
)
from services.api.storage.tables.runs import Run

_ROLLOUTS = cast(SampleRow.samples, Text)


class StepText(NamedTuple):
    """One training step; the last two are JSON text."""

    step: int
    at: float
    metrics: str
    groups: str


async def steps_after(session: AsyncSession, run_id: str, after: int, limit: int) -> list[StepText]:
    """Steps with a number above `after`, in order."""
    query = select(StepRow.step, StepRow.at, cast(StepRow.metrics, Text), cast(StepRow.groups, Text))
    query = query.where(StepRow.run_id == run_id, StepRow.step > after).order_by(StepRow.step).limit(limit)
    return [StepText(*row) for row in await session.execute(query)]


async def newest_step(session: AsyncSession, run: Run) -> StepRow | None:
    """The step that the run finished last."""
    return await session.get(StepRow, (run.id, run.step))


async def evaluations(session: AsyncSession, run_id: str) -> Sequence[EvaluationRow]:
    query = select(EvaluationRow).where(EvaluationRow.run_id == run_id)
    return (await session.scalars(query.order_by(EvaluationRow.step, EvaluationRow.split))).all()


async def first_and_last_accuracy(session: AsyncSession, run_id: str) -> tuple[float | None, float | None]:
    """avg@k of the first and the newest evaluation."""
    query = select(EvaluationRow.accuracy).where(EvaluationRow.run_id == run_id).limit(1)
    first = await session.scalar(query.order_by(EvaluationRow.step, EvaluationRow.split))
    return first, await session.scalar(query.order_by(EvaluationRow.step.desc(), EvaluationRow.split.desc()))


async def checkpoints(session: AsyncSession, run_id: str) -> Sequence[CheckpointRow]:
    query = select(CheckpointRow).where(CheckpointRow.run_id == run_id).order_by(CheckpointRow.step)
    return (await session.scalars(query)).all()


async def weight_pushes(session: AsyncSession, run_id: str, limit: int) -> Sequence[WeightPushRow]:
    """Newest first."""
    query = select(WeightPushRow).where(WeightPushRow.run_id == run_id).order_by(WeightPushRow.id.desc()).limit(limit)
    return (await session.scalars(query)).all()


class SampleKey(NamedTuple):
    """Names one stored group as it was at one moment: a step that is trained again replaces its groups."""

    step: int
    group_id: str
    at: float


async def sample_keys(session: AsyncSession, run_id: str, step: int | None, limit: int) -> list[SampleKey]:
    """Sampled groups of one step, or the newest ones of all."""
    chosen = [SampleRow.run_id == run_id, *([] if step is None else [SampleRow.step == step])]
    query = select(SampleRow.step, SampleRow.group_id, SampleRow.at).where(*chosen)
    rows = await session.execute(query.order_by(SampleRow.step.desc(), SampleRow.group_id).limit(limit))
    return [SampleKey(*row) for row in rows]


async def sample_head(session: AsyncSession, run_id: str, key: SampleKey) -> tuple[dict[str, Any], int] | None:
    """The group's fields but its rollouts, and the length of those' JSON text; None if it is no longer there."""
    columns = (SampleRow.step, SampleRow.group_id, SampleRow.at, SampleRow.question_id, SampleRow.prompt)
    query = select(*columns, SampleRow.answer, func.length(_ROLLOUTS).label("length")).where(*_named(run_id, key))
    row = (await session.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    fields = dict(row)
    return fields, fields.pop("length")


async def sample_piece(session: AsyncSession, run_id: str, key: SampleKey, start: int, length: int) -> str | None:
    """Up to `length` characters of the rollouts' JSON text, from the character `start` on; None if it is gone."""
    query = select(func.substr(_ROLLOUTS, start + 1, length)).where(*_named(run_id, key))
    piece: str | None = await session.scalar(query)
    return piece


def _named(run_id: str, key: SampleKey) -> tuple[ColumnElement[bool], ...]:
    return (
        SampleRow.run_id == run_id,
        SampleRow.step == key.step,
        SampleRow.group_id == key.group_id,
        SampleRow.at == key.at,
    )


async def events_after(session: AsyncSession, run_id: str, after: int, limit: int) -> Sequence[EventRow]:
    """Entries of the event stream with an id above `after`, in order."""
    query = select(EventRow).where(EventRow.run_id == run_id, EventRow.id > after).order_by(EventRow.id).limit(limit)
    return (await session.scalars(query)).all()

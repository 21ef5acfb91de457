"""Queries on the history of a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from sqlalchemy import Text, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.api.history.models import CheckpointRow, EvaluationRow, EventRow, SampleRow, StepRow, WeightPushRow
from services.api.runs.models import Run

MAX_SAMPLES_BYTES = 32 << 20
"""Of JSON text in one answer; as values it takes ten times as much memory."""


async def steps_after(session: AsyncSession, run_id: str, after: int, limit: int) -> Sequence[StepRow]:
    """Steps with a number above `after`, in order."""
    query = select(StepRow).where(StepRow.run_id == run_id, StepRow.step > after).order_by(StepRow.step).limit(limit)
    return (await session.scalars(query)).all()


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


async def samples(session: AsyncSession, run_id: str, step: int | None, limit: int) -> Sequence[SampleRow]:
    """Sampled groups of one step, or the newest ones of all; fewer than `limit` where they are larger than
    `MAX_SAMPLES_BYTES` together, but one at least: a long group has megabytes."""
    chosen = [SampleRow.run_id == run_id, *([] if step is None else [SampleRow.step == step])]
    order = (SampleRow.step.desc(), SampleRow.group_id)
    length = func.length(cast(SampleRow.samples, Text))
    lengths = await session.scalars(select(length).where(*chosen).order_by(*order).limit(limit))
    fit = sum(total <= MAX_SAMPLES_BYTES for total in accumulate(lengths))
    return (await session.scalars(select(SampleRow).where(*chosen).order_by(*order).limit(max(1, fit)))).all()


async def events_after(session: AsyncSession, run_id: str, after: int, limit: int) -> Sequence[EventRow]:
    """Entries of the event stream with an id above `after`, in order."""
    query = select(EventRow).where(EventRow.run_id == run_id, EventRow.id > after).order_by(EventRow.id).limit(limit)
    return (await session.scalars(query)).all()

"""Queries on the history of a run."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.api.history.models import CheckpointRow, EvaluationRow, EventRow, SampleRow, StepRow, WeightPushRow
from services.api.runs.models import Run


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
    query = select(EvaluationRow.accuracy).where(EvaluationRow.run_id == run_id)
    found = (await session.scalars(query.order_by(EvaluationRow.step, EvaluationRow.split))).all()
    return (found[0], found[-1]) if found else (None, None)


async def checkpoints(session: AsyncSession, run_id: str) -> Sequence[CheckpointRow]:
    query = select(CheckpointRow).where(CheckpointRow.run_id == run_id).order_by(CheckpointRow.step)
    return (await session.scalars(query)).all()


async def weight_pushes(session: AsyncSession, run_id: str, limit: int) -> Sequence[WeightPushRow]:
    """Newest first."""
    query = select(WeightPushRow).where(WeightPushRow.run_id == run_id).order_by(WeightPushRow.id.desc()).limit(limit)
    return (await session.scalars(query)).all()


async def samples(session: AsyncSession, run_id: str, step: int | None, limit: int) -> Sequence[SampleRow]:
    """Sampled groups of one step, or the newest ones of all."""
    query = select(SampleRow).where(SampleRow.run_id == run_id)
    if step is not None:
        query = query.where(SampleRow.step == step)
    return (await session.scalars(query.order_by(SampleRow.step.desc(), SampleRow.group_id).limit(limit))).all()


async def events_after(session: AsyncSession, run_id: str, after: int, limit: int) -> Sequence[EventRow]:
    """Entries of the event stream with an id above `after`, in order."""
    query = select(EventRow).where(EventRow.run_id == run_id, EventRow.id > after).order_by(EventRow.id).limit(limit)
    return (await session.scalars(query)).all()

"""Queries on the table of runs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Literal

import msgspec
from sqlalchemy import ColumnElement, and_, delete, or_, select
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
from services.contracts.errors import ConfigurationError, NotFoundError
from services.contracts.states import ACTIVE_STATES, TERMINAL_STATES, RunState

Sort = Literal["created_at", "-created_at", "name", "-name", "state", "-state", "step", "-step"]


async def get_run(session: AsyncSession, run_id: str) -> Run:
    """The run. Raises `NotFoundError`."""
    run = await session.get(Run, run_id)
    if run is None:
        raise NotFoundError(f"There is no run {run_id!r}.", remedy="GET /v1/runs lists the runs.", field="run_id")
    return run


async def unfinished_runs(session: AsyncSession) -> Sequence[Run]:
    """Every run that is not in a terminal state, oldest in the queue first."""
    query = select(Run).where(Run.state.not_in(TERMINAL_STATES)).order_by(Run.queued_at, Run.id)
    return (await session.scalars(query)).all()


async def active_runs(session: AsyncSession) -> Sequence[Run]:
    """Every run that instances work for; queued ones may be very many."""
    query = select(Run).where(Run.state.in_(ACTIVE_STATES)).order_by(Run.queued_at, Run.id)
    return (await session.scalars(query)).all()


async def run_of_key(session: AsyncSession, idempotency_key: str) -> Run | None:
    return (await session.scalars(select(Run).where(Run.idempotency_key == idempotency_key))).one_or_none()


async def page_of_runs(
    session: AsyncSession, *, state: Sequence[RunState], name: str | None, sort: Sort, cursor: str | None, limit: int
) -> tuple[list[tuple[Run, dict[str, float]]], str | None]:
    """One page of runs with the metrics of their newest steps, and the cursor of the next, or None at the end.

    Args:
        state: only runs in one of these states; empty for all.
        name: only runs whose name contains this text, in any case.

    Raises:
        ConfigurationError: the cursor is not one of ours for this sorting.
    """
    column = {"created_at": Run.created_at, "name": Run.name, "state": Run.state, "step": Run.step}[sort.lstrip("-")]
    descending = sort.startswith("-")
    newest = and_(StepRow.run_id == Run.id, StepRow.step == Run.step)
    query = select(Run, StepRow.metrics).outerjoin(StepRow, newest)
    if state:
        query = query.where(Run.state.in_(state))
    if name:
        query = query.where(Run.name.icontains(name, autoescape=True))
    if cursor:
        value, run_id = _read_cursor(cursor, sort)
        ids: ColumnElement[bool] = Run.id < run_id if descending else Run.id > run_id
        further: ColumnElement[bool] = column < value if descending else column > value
        query = query.where(or_(further, and_(column == value, ids)))
    order = (column.desc(), Run.id.desc()) if descending else (column.asc(), Run.id.asc())
    runs = [(run, metrics or {}) for run, metrics in await session.execute(query.order_by(*order).limit(limit + 1))]
    if len(runs) <= limit:
        return runs, None
    last = runs[limit - 1][0]
    return runs[:limit], _write_cursor(getattr(last, sort.lstrip("-")), last.id, sort)


async def delete_run_rows(session: AsyncSession, run_id: str) -> None:
    """Delete the run and its whole history."""
    for table in (StepRow, EvaluationRow, CheckpointRow, WeightPushRow, EventRow, SampleRow):
        await session.execute(delete(table).where(table.run_id == run_id))
    await session.execute(delete(Run).where(Run.id == run_id))


def _write_cursor(value: float | int | str, run_id: str, sort: Sort) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([sort, value, run_id])).decode().rstrip("=")


def _read_cursor(cursor: str, sort: Sort) -> tuple[float | int | str, str]:
    kind = str if sort.lstrip("-") in ("name", "state") else float
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        made_for, value, run_id = msgspec.json.decode(raw, type=tuple[str, kind, str])  # type: ignore[valid-type]
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise _wrong_cursor() from error
    if made_for != sort:
        raise _wrong_cursor()
    return value, run_id


def _wrong_cursor() -> ConfigurationError:
    return ConfigurationError(
        "The cursor does not belong to this listing.",
        remedy="Pass next_cursor of the page before, with the same sort.",
        field="cursor",
    )

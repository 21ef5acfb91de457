"""Runs: what was requested, their state, and the instances that work for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from sqlalchemy import JSON, ColumnElement, Float, Index, Integer, String, Text, and_, cast, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from services.api.storage.database import Base
from services.api.storage.history import STEPS
from services.api.storage.pages import read_cursor, write_cursor
from services.contracts.errors import NotFoundError
from services.contracts.states import ACTIVE_STATES, TERMINAL_STATES, DesiredState, RunState

Sort = Literal["created_at", "-created_at", "name", "-name", "state", "-state", "step", "-step"]


class Run(Base):
    """One training run. Times are Unix seconds."""

    __tablename__ = "runs"
    __table_args__ = (Index(None, "created_at", "id"), Index(None, "state"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    state: Mapped[RunState] = mapped_column(String(16))
    """One of `services.contracts.states.RUN_STATES`; only `services.api.live.journal` changes it."""
    desired: Mapped[DesiredState] = mapped_column(String(16))
    """The state that was requested; the scheduler copies it to Redis."""
    reason: Mapped[str] = mapped_column(Text, default="")
    """Why the run is in its state, if that needs an explanation."""
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The checked run configuration, every default filled in."""
    created_at: Mapped[float] = mapped_column(Float)
    queued_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    step: Mapped[int] = mapped_column(Integer, default=0)
    """Newest finished training step."""
    learner: Mapped[str | None] = mapped_column(String(200))
    """Instance that trains the run; kept after the end, since its unacknowledged groups carry its name."""
    learner_started_at: Mapped[float | None] = mapped_column(Float)
    """Start of the learner process last seen, by the learner's clock. A different value means a different process."""
    learner_said: Mapped[str] = mapped_column(String(16), default="")
    """State in the newest state change that the learner reported."""
    rollout_servers: Mapped[list[str]] = mapped_column(JSON, default=list)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    created_by: Mapped[str] = mapped_column(String(64), default="")
    """Id of the key that created the run; empty without keys."""
    tags: Mapped[list[str]] = mapped_column(JSON, default=list)
    note: Mapped[str] = mapped_column(Text, default="")
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_digest: Mapped[str] = mapped_column(String(64), default="")
    """SHA-256 of the creating request's configuration, to tell a repeated request from a different one."""
    forked_from_run: Mapped[str | None] = mapped_column(String(64))
    """Parent of a fork; no foreign key, since the parent may be deleted."""
    forked_from_step: Mapped[int | None] = mapped_column(Integer)


async def get_run(session: AsyncSession, run_id: str) -> Run:
    """The run. Raises `NotFoundError`."""
    run = await session.get(Run, run_id)
    if run is None:
        raise NotFoundError(f"There is no run {run_id!r}.", remedy="GET /v1/runs lists the runs.", field="run_id")
    return run


async def unfinished_runs(session: AsyncSession) -> Sequence[Run]:
    """Every run that is not in a terminal state, in the order of the queue: by priority, then the oldest first."""
    order = (Run.priority.desc(), Run.queued_at, Run.id)
    query = select(Run).where(Run.state.not_in(TERMINAL_STATES)).order_by(*order)
    return (await session.scalars(query)).all()


async def active_runs(session: AsyncSession) -> Sequence[Run]:
    """Every run that instances work for. Excludes queued runs, of which there may be very many."""
    query = select(Run).where(Run.state.in_(ACTIVE_STATES)).order_by(Run.queued_at, Run.id)
    return (await session.scalars(query)).all()


async def runs_among(session: AsyncSession, ids: Collection[str]) -> set[str]:
    """Those of these ids that are runs."""
    return set(await session.scalars(select(Run.id).where(Run.id.in_(ids))))


async def run_of_key(session: AsyncSession, idempotency_key: str) -> Run | None:
    return (await session.scalars(select(Run).where(Run.idempotency_key == idempotency_key))).one_or_none()


async def page_of_runs(
    session: AsyncSession,
    *,
    state: Sequence[RunState],
    name: str | None,
    sort: Sort,
    cursor: str | None,
    limit: int,
    conditions: Sequence[ColumnElement[bool]] = (),
) -> tuple[list[tuple[Run, dict[str, float]]], str | None]:
    """One page of runs with the metrics of their newest steps, and the cursor of the next, or None at the end.

    Args:
        state: only runs in one of these states; empty for all.
        name: only runs whose name contains this text, in any case.
        conditions: what else must be true of the runs.

    Raises:
        ConfigurationError: the cursor was not made for this sort order.
    """
    column = {"created_at": Run.created_at, "name": Run.name, "state": Run.state, "step": Run.step}[sort.lstrip("-")]
    descending = sort.startswith("-")
    newest = and_(STEPS.c.run_id == Run.id, STEPS.c.step == Run.step)
    query = select(Run, STEPS.c.metrics).outerjoin(STEPS, newest).where(*conditions)
    if state:
        query = query.where(Run.state.in_(state))
    if name:
        query = query.where(Run.name.icontains(name, autoescape=True))
    if cursor:
        value, run_id = read_cursor(cursor, sort, str if sort.lstrip("-") in ("name", "state") else float)
        ids: ColumnElement[bool] = Run.id < run_id if descending else Run.id > run_id
        further: ColumnElement[bool] = column < value if descending else column > value
        query = query.where(or_(further, and_(column == value, ids)))
    order = (column.desc(), Run.id.desc()) if descending else (column.asc(), Run.id.asc())
    runs = [(run, metrics or {}) for run, metrics in await session.execute(query.order_by(*order).limit(limit + 1))]
    if len(runs) <= limit:
        return runs, None
    last = runs[limit - 1][0]
    return runs[:limit], write_cursor(getattr(last, sort.lstrip("-")), last.id, sort)


def has_tag(tag: str) -> ColumnElement[bool]:
    """Whether a run has this tag. Tags have no quotes, so one in quotes is a whole one."""
    return cast(Run.tags, Text).contains(f'"{tag}"', autoescape=True)


async def delete_run_rows(session: AsyncSession, run_id: str) -> None:
    """Delete the run and its whole history: every row of every table that names it."""
    for table in Base.metadata.tables.values():
        if "run_id" in table.c:
            await session.execute(delete(table).where(table.c.run_id == run_id))
    await session.execute(delete(Run).where(Run.id == run_id))

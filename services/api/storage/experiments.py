"""Experiments: the file as it was sent, what tuning chose, and which run belongs to which cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import JSON, Float, Index, String, Text, delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from services.api.storage.database import Base
from services.api.storage.history import EVALUATIONS
from services.api.storage.pages import newest_first
from services.api.storage.runs import Run
from services.contracts.errors import NotFoundError


class ExperimentRow(Base):
    """One experiment. Times are Unix seconds."""

    __tablename__ = "experiments"
    __table_args__ = (Index(None, "created_at", "id"), Index(None, "state"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    file: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The experiment file as it was sent, before the first run. Never changed."""
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of `file` in canonical JSON."""
    inputs: Mapped[dict[str, str]] = mapped_column(JSON)
    """SHA-256 of each data file by path; hub names have none."""
    chosen: Mapped[dict[str, int] | None] = mapped_column(JSON(none_as_null=True))
    """Method to the index of the grid point that tuning chose; written once."""
    scores: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Scores by method, point and seed on which the choice is based; written with it."""
    created_at: Mapped[float] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    created_by: Mapped[str] = mapped_column(String(64), default="")
    """Id of the key that created the experiment, which its runs count for; empty without keys."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)


class ExperimentRun(Base):
    """The run of one cell."""

    __tablename__ = "experiment_runs"

    experiment_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    cell: Mapped[str] = mapped_column(String(200), primary_key=True)
    run_id: Mapped[str] = mapped_column(String(64), unique=True)


async def get_experiment(session: AsyncSession, experiment_id: str) -> ExperimentRow:
    """The experiment. Raises `NotFoundError`."""
    row = await session.get(ExperimentRow, experiment_id)
    if row is None:
        raise NotFoundError(
            f"There is no experiment {experiment_id!r}.",
            remedy="GET /v1/experiments lists the experiments.",
            field="experiment_id",
        )
    return row


async def list_experiments(
    session: AsyncSession, *, cursor: str | None, limit: int
) -> tuple[list[ExperimentRow], str | None]:
    """A page, newest first, and the cursor of the next."""
    return await newest_first(session, select(ExperimentRow), ExperimentRow, cursor, limit)


async def running_experiments(session: AsyncSession) -> Sequence[ExperimentRow]:
    """Oldest first."""
    query = select(ExperimentRow).where(ExperimentRow.state == "running").order_by(ExperimentRow.created_at)
    return (await session.scalars(query)).all()


async def experiment_of_key(session: AsyncSession, key: str) -> ExperimentRow | None:
    return (await session.scalars(select(ExperimentRow).where(ExperimentRow.idempotency_key == key))).one_or_none()


async def runs_by_cell(session: AsyncSession, experiment_id: str) -> dict[str, Run]:
    """The experiment's runs. A cell whose run was deleted is absent."""
    query = (
        select(ExperimentRun.cell, Run)
        .join(Run, Run.id == ExperimentRun.run_id)
        .where(ExperimentRun.experiment_id == experiment_id)
    )
    return dict(iter(await session.execute(query)))


async def accuracies(session: AsyncSession, splits: Mapping[str, str]) -> dict[str, list[tuple[int, float]]]:
    """Steps and accuracies of the evaluations of one split per run, by run, in order."""
    table = EVALUATIONS.c
    query = select(table.run_id, table.step, table.split, table.accuracy).where(table.run_id.in_(splits))
    found: dict[str, list[tuple[int, float]]] = {}
    for run_id, step, split, accuracy in await session.execute(query.order_by(table.run_id, table.step)):
        if split == splits[run_id]:
            found.setdefault(run_id, []).append((step, accuracy))
    return found


async def delete_experiment_rows(session: AsyncSession, experiment_id: str) -> None:
    """Delete the experiment; its runs stay."""
    await session.execute(delete(ExperimentRun).where(ExperimentRun.experiment_id == experiment_id))
    await session.execute(delete(ExperimentRow).where(ExperimentRow.id == experiment_id))

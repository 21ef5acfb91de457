"""The log of a run's events, which event streams send. An event that is delivered twice is stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import JSON, BigInteger, Float, Index, Integer, String, Table, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from services.api.storage.database import Base
from services.contracts import events

SERIAL = BigInteger().with_variant(Integer, "sqlite")


class EventRow(Base):
    """One entry of a run's event stream; `id` is the Last-Event-ID, and increases in the order of visibility."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "run_id", "key", unique=True), Index(None, "run_id", "id"))

    id: Mapped[int] = mapped_column(SERIAL, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(255))
    """Natural key, the same for every delivery of an event."""
    type: Mapped[str] = mapped_column(String(16))
    """One of `TYPES`."""
    at: Mapped[float] = mapped_column(Float)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


@dataclass(frozen=True, slots=True)
class Kind:
    """How events of one class are stored."""

    type: str
    """Their name in event streams."""
    key: tuple[str, ...]
    """Fields that, with the run, identify the subject of the event. A later event about it replaces its record."""
    hashed: bool = False
    """Whether the key's fields are hashed, because they are long."""


KINDS: dict[type[events.Event], Kind] = {
    events.RunStateChanged: Kind("state", ("state",)),
    events.StepFinished: Kind("step", ("step",)),
    events.EvaluationFinished: Kind("evaluation", ("step", "split", "num_samples")),
    events.CheckpointWritten: Kind("checkpoint", ("step",)),
    events.WeightsPublished: Kind("weights", ("version",)),
    events.Note: Kind("note", ("source", "text"), hashed=True),
    events.ProbeFinished: Kind("probe", ()),
    events.SamplesTaken: Kind("samples", ("step", "group_id")),
}
TYPES = sorted(kind.type for kind in KINDS.values())


def natural_key(event: events.Event) -> str:
    """The same for every delivery of one event; different for a step that is trained again, since its time differs."""
    kind = KINDS[type(event)]
    key = ":".join(str(getattr(event, name)) for name in kind.key)
    if kind.hashed:
        key = hashlib.sha256(key.encode()).hexdigest()[:16]
    return f"{kind.type}:{key}:{event.at!r}"[:255]


def event_data(event: events.Event) -> dict[str, Any]:
    """The event's fields as event streams send them: without the run id and long lists; samples are only counted."""
    data = {name: value for name, value in msgspec.structs.asdict(event).items() if value is not msgspec.UNSET}
    for name in ("run_id", "histograms", "questions"):
        data.pop(name, None)
    if isinstance(event, events.SamplesTaken):
        data["num_samples"] = len(data.pop("samples"))
        del data["prompt"], data["answer"]
    plain: dict[str, Any] = msgspec.to_builtins(data)
    return plain


async def append(session: AsyncSession, event: events.Event, data: dict[str, Any]) -> int | None:
    """Id of the event's new entry; None if it is stored already."""
    values = {"run_id": event.run_id, "key": natural_key(event), "type": KINDS[type(event)].type, "at": event.at}
    query = insert(session, EventRow).values(**values, data=data).on_conflict_do_nothing()
    new_id: int | None = await session.scalar(query.returning(EventRow.id))
    return new_id


def insert(session: AsyncSession, table: type[Base] | Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT for the session's database that can say what happens if a key is taken."""
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    return postgresql.insert(table) if is_postgresql else sqlite.insert(table)


async def events_after(session: AsyncSession, run_id: str, after: int, limit: int) -> Sequence[EventRow]:
    """Entries of the event stream with an id above `after`, in order."""
    query = select(EventRow).where(EventRow.run_id == run_id, EventRow.id > after).order_by(EventRow.id).limit(limit)
    return (await session.scalars(query)).all()


async def newest(session: AsyncSession, run_id: str, type_: str) -> dict[str, Any] | None:
    """What the newest event of a type says; None if there is none."""
    query = select(EventRow.data).where(EventRow.run_id == run_id, EventRow.type == type_)
    data: dict[str, Any] | None = await session.scalar(query.order_by(EventRow.id.desc()).limit(1))
    return data

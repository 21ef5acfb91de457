"""Table of runs: what was asked for, where it stands, and which instances work for it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from services.api.storage.database import Base


class Run(Base):
    """One training run. Times are Unix seconds."""

    __tablename__ = "runs"
    __table_args__ = (Index(None, "created_at", "id"), Index(None, "state"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(16))
    """One of `services.contracts.states.RUN_STATES`; only `services.api.live.journal` changes it."""
    desired: Mapped[str] = mapped_column(String(16))
    """What a person asked for, `DesiredState`; the scheduler copies it to Redis."""
    reason: Mapped[str] = mapped_column(Text, default="")
    """Why the run is in its state, where that needs a word."""
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The checked run configuration, every default filled in."""
    created_at: Mapped[float] = mapped_column(Float)
    queued_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    step: Mapped[int] = mapped_column(Integer, default=0)
    """Newest training step finished."""
    learner: Mapped[str | None] = mapped_column(String(200))
    """Instance that trains the run; kept after the end, since its unacknowledged groups carry its name."""
    learner_started_at: Mapped[float | None] = mapped_column(Float)
    """Start of the learner process last seen, by the learner's clock: another number is another process."""
    learner_said: Mapped[str] = mapped_column(String(16), default="")
    """State in the newest state change that the learner reported."""
    rollout_servers: Mapped[list[str]] = mapped_column(JSON, default=list)
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_digest: Mapped[str] = mapped_column(String(64), default="")
    """SHA-256 of the creating request's configuration, to tell a repeated request from a different one."""
    forked_from_run: Mapped[str | None] = mapped_column(String(64))
    """Parent of a fork; no foreign key, since the parent may be deleted."""
    forked_from_step: Mapped[int | None] = mapped_column(Integer)

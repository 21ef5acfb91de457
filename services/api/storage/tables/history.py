"""Tables of what happened in a run. Times are Unix seconds. Natural keys make storing an event twice harmless."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from services.api.storage.database import Base

Serial = BigInteger().with_variant(Integer, "sqlite")


class StepRow(Base):
    """One training step; a step that is trained again after a resume replaces its row."""

    __tablename__ = "steps"

    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    histograms: Mapped[dict[str, Any]] = mapped_column(JSON)
    groups: Mapped[dict[str, int]] = mapped_column(JSON)


class EvaluationRow(Base):
    """avg@k and pass@k of one split after one step."""

    __tablename__ = "evaluations"

    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    split: Mapped[str] = mapped_column(String(100), primary_key=True)
    num_samples: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    num_questions: Mapped[int] = mapped_column(Integer)
    accuracy: Mapped[float] = mapped_column(Float)
    pass_at_k: Mapped[float] = mapped_column(Float)
    accuracy_by_kind: Mapped[dict[str, float]] = mapped_column(JSON)
    response_tokens_mean: Mapped[float] = mapped_column(Float)
    truncated_ratio: Mapped[float] = mapped_column(Float)
    num_faults: Mapped[int] = mapped_column(Integer)
    seconds: Mapped[float] = mapped_column(Float)


class CheckpointRow(Base):
    """A durable checkpoint. The learner deletes old ones from disk; `exists` is asked of the disk when read."""

    __tablename__ = "checkpoints"

    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    path: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Float)


class WeightPushRow(Base):
    """One try to bring one rollout server to one weight version."""

    __tablename__ = "weight_pushes"
    __table_args__ = (Index(None, "run_id", "id"),)

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(String(64))
    version: Mapped[int] = mapped_column(Integer)
    instance: Mapped[str] = mapped_column(String(200))
    at: Mapped[float] = mapped_column(Float)
    seconds: Mapped[float] = mapped_column(Float)
    error: Mapped[str] = mapped_column(Text, default="")
    """Empty where the server's checksum was confirmed; else what failed."""
    transport: Mapped[str] = mapped_column(String(16), default="store", server_default="store")
    """How the bytes went, or were last tried: store, cuda_ipc or nccl."""


class EventRow(Base):
    """One entry of a run's event stream; `id` is what Last-Event-ID names and grows in the order of visibility."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "run_id", "key", unique=True), Index(None, "run_id", "id"))

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(255))
    """Natural key: the same event delivered twice has the same."""
    type: Mapped[str] = mapped_column(String(16))
    """state, step, evaluation, checkpoint, weights, note or samples."""
    at: Mapped[float] = mapped_column(Float)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


class SampleRow(Base):
    """One group of a training step with its rollouts, for the sample browser."""

    __tablename__ = "samples"

    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    group_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    question_id: Mapped[str] = mapped_column(Text)
    prompt: Mapped[str] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text)
    samples: Mapped[list[dict[str, Any]]] = mapped_column(JSON)

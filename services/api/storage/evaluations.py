"""Evaluations of their own, and what each of their questions came to. (Those of a run are part of its history.)"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import JSON, BigInteger, Float, Index, Integer, String, Text, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from services.api.storage.database import Base
from services.api.storage.pages import newest_first
from services.contracts.errors import NotFoundError
from services.contracts.records import EvaluationState, KeptSamples, QuestionResult

UNENDED: tuple[EvaluationState, ...] = ("queued", "running")


class EvaluationRow(Base):
    """One evaluation. Times are Unix seconds."""

    __tablename__ = "model_evaluations"
    __table_args__ = (Index(None, "created_at", "id"), Index(None, "state"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    state: Mapped[EvaluationState] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    """As it was sent. Never changed."""
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The run configuration that the services work with."""
    model: Mapped[str] = mapped_column(Text)
    """As users know it; the configuration may name a copy."""
    of_run: Mapped[str | None] = mapped_column(String(64), index=True)
    of_step: Mapped[int | None] = mapped_column(Integer)
    weights: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Version, path and checksum of the evaluation's own copy of published weights; null: the model's own."""
    priority: Mapped[int] = mapped_column(Integer, default=0)
    rollout_servers: Mapped[list[str]] = mapped_column(JSON, default=list)
    num_questions: Mapped[int | None] = mapped_column(Integer)
    num_done: Mapped[int] = mapped_column(Integer, default=0)
    results: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    """Written once, at the end."""
    created_at: Mapped[float] = mapped_column(Float)
    queued_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_digest: Mapped[str] = mapped_column(String(64))

    @property
    def version(self) -> int:
        """The weight version that every token must come from."""
        return int(self.weights["version"]) if self.weights else 0


class EvaluatedQuestion(Base):
    """What one question came to. Fields as in `QuestionResult`; `place` orders the sets."""

    __tablename__ = "evaluated_questions"

    evaluation_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    set: Mapped[str] = mapped_column(String(100))
    question_id: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    num_samples: Mapped[int] = mapped_column(Integer)
    num_correct: Mapped[int] = mapped_column(Integer)
    num_truncated: Mapped[int] = mapped_column(Integer)
    num_faults: Mapped[int] = mapped_column(Integer)
    response_tokens: Mapped[int] = mapped_column(BigInteger)
    fault: Mapped[str] = mapped_column(Text)

    @classmethod
    def of(cls, evaluation_id: str, place: int, result: QuestionResult) -> EvaluatedQuestion:
        return cls(evaluation_id=evaluation_id, place=place, **msgspec.structs.asdict(result))

    def result(self) -> QuestionResult:
        return QuestionResult(**{name: getattr(self, name) for name in QuestionResult.__struct_fields__})


class EvaluatedSamples(Base):
    """Samples of one question for people to read. Fields as in `KeptSamples`."""

    __tablename__ = "evaluated_samples"

    evaluation_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    prompt: Mapped[str] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text)
    samples: Mapped[list[Any]] = mapped_column(JSON)


class Found(NamedTuple):
    """One question that has been judged or given up."""

    place: int
    """Number of its set."""
    result: QuestionResult
    kept: KeptSamples | None = None


async def get_evaluation(session: AsyncSession, evaluation_id: str) -> EvaluationRow:
    """The evaluation. Raises `NotFoundError`."""
    row = await session.get(EvaluationRow, evaluation_id)
    if row is None:
        raise NotFoundError(
            f"There is no evaluation {evaluation_id!r}.",
            remedy="GET /v1/evaluations lists the evaluations.",
            field="evaluation_id",
        )
    return row


async def list_evaluations(
    session: AsyncSession, *, cursor: str | None, limit: int, run_id: str | None = None
) -> tuple[list[EvaluationRow], str | None]:
    """A page, newest first, and the cursor of the next; with `run_id` only those of its weights."""
    query = select(EvaluationRow)
    if run_id is not None:
        query = query.where(EvaluationRow.of_run == run_id)
    return await newest_first(session, query, EvaluationRow, cursor, limit)


async def unended_evaluations(session: AsyncSession) -> Sequence[EvaluationRow]:
    """In the order of the queue: by priority, then the oldest first."""
    order = (EvaluationRow.priority.desc(), EvaluationRow.queued_at, EvaluationRow.id)
    return (await session.scalars(select(EvaluationRow).where(EvaluationRow.state.in_(UNENDED)).order_by(*order))).all()


async def needs_files(session: AsyncSession, evaluation_id: str) -> bool:
    """Whether this is an evaluation that has not ended."""
    row = await session.get(EvaluationRow, evaluation_id)
    return row is not None and row.state in UNENDED


async def evaluation_of_key(session: AsyncSession, key: str) -> EvaluationRow | None:
    return (await session.scalars(select(EvaluationRow).where(EvaluationRow.idempotency_key == key))).one_or_none()


async def states(session: AsyncSession) -> dict[str, int]:
    """The number of evaluations by state."""
    query = select(EvaluationRow.state, func.count()).group_by(EvaluationRow.state)
    return dict(iter(await session.execute(query)))


async def questions(
    session: AsyncSession, evaluation_id: str, *, offset: int = 0, limit: int | None = None
) -> list[QuestionResult]:
    """What the questions came to, in the order of sets and questions."""
    table = EvaluatedQuestion
    query = select(table).where(table.evaluation_id == evaluation_id).order_by(table.place, table.number)
    return [row.result() for row in await session.scalars(query.offset(offset).limit(limit))]


async def done_places(
    session: AsyncSession, evaluation_id: str, numbers: Collection[int] | None = None
) -> set[tuple[int, int]]:
    """Set and number of each question that is done; with `numbers` only of those with one of these numbers."""
    query = select(EvaluatedQuestion.place, EvaluatedQuestion.number)
    query = query.where(EvaluatedQuestion.evaluation_id == evaluation_id)
    if numbers is not None:
        query = query.where(EvaluatedQuestion.number.in_(numbers))
    return {(place, number) for place, number in await session.execute(query)}


async def store_questions(session: AsyncSession, evaluation_id: str, results: Iterable[Found]) -> bool:
    """Add results and count them. Returns False and adds nothing if the evaluation has ended or is gone."""
    row = await session.get(EvaluationRow, evaluation_id)
    if row is None or row.state not in UNENDED:
        return False
    fresh = {(item.place, item.result.number): item for item in results}
    done = await done_places(session, evaluation_id, {number for _, number in fresh})
    fresh = {key: item for key, item in fresh.items() if key not in done}
    session.add_all(EvaluatedQuestion.of(evaluation_id, item.place, item.result) for item in fresh.values())
    for (place, number), item in fresh.items():
        if item.kept is not None:
            key = {"evaluation_id": evaluation_id, "place": place, "number": number}
            session.add(EvaluatedSamples(**key, **msgspec.to_builtins(item.kept)))
    row.num_done += len(fresh)
    return True


async def kept_samples(session: AsyncSession, evaluation_id: str, set_name: str, number: int) -> KeptSamples:
    """Samples of the question with this number in this set. Raises `NotFoundError`."""
    question, samples = EvaluatedQuestion, EvaluatedSamples
    named = (question.evaluation_id == evaluation_id, question.set == set_name, question.number == number)
    query = select(samples).join(
        question,
        (samples.evaluation_id == question.evaluation_id)
        & (samples.place == question.place)
        & (samples.number == question.number),
    )
    row = (await session.scalars(query.where(*named))).one_or_none()
    if row is None:
        raise NotFoundError(
            f"Question {number} of set {set_name!r} has no samples: it is not judged yet, was given up, or was stored "
            "without them.",
            remedy="Choose another question, or wait until this one is judged.",
            field="number",
        )
    return msgspec.convert({"prompt": row.prompt, "answer": row.answer, "samples": row.samples}, KeptSamples)


async def delete_evaluation_rows(session: AsyncSession, evaluation_id: str) -> None:
    await session.execute(delete(EvaluatedSamples).where(EvaluatedSamples.evaluation_id == evaluation_id))
    await session.execute(delete(EvaluatedQuestion).where(EvaluatedQuestion.evaluation_id == evaluation_id))
    await session.execute(delete(EvaluationRow).where(EvaluationRow.id == evaluation_id))

"""REST: evaluations."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response

from services.api.control.examiner import results_of
from services.api.http.bodies import BoundedRoute
from services.api.http.problems import responses
from services.api.http.provide import Provided
from services.api.http.records import NEXT_CURSOR, answer, answer_one, listing, schema
from services.api.resources.evaluations.schemas import EvaluationChanges
from services.api.resources.evaluations.service import EvaluationService
from services.api.resources.runs.endpoints import IdempotencyKey
from services.api.resources.runs.schemas import Priority
from services.api.storage import evaluations as repository
from services.api.storage.database import Database
from services.api.storage.evaluations import EvaluationRow
from services.contracts import records
from services.contracts.errors import ConfigurationError
from services.contracts.evaluations.request import EvaluationRequest
from services.contracts.evaluations.results import difference

router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"], route_class=BoundedRoute)
Evaluations = Annotated[EvaluationService, Provided(EvaluationService)]
Data = Annotated[Database, Provided(Database)]
Summary = schema("ModelEvaluationSummary", records.ModelEvaluationSummary, ())
Detail = schema("ModelEvaluation", records.ModelEvaluation, ())
QuestionItem = schema("QuestionResult", records.QuestionResult, ())
Samples = schema("KeptSamples", records.KeptSamples, ())
EvaluationList = listing("ModelEvaluationList", Summary, **NEXT_CURSOR)
QuestionPage = listing("QuestionResultPage", QuestionItem, **NEXT_CURSOR)
Difference = schema("EvaluationDifference", records.EvaluationDifference, ())
ERRORS = responses(401, 404, 409, 422, 503)


@router.post("", status_code=201, response_model=Detail, responses=responses(400, 401, 409, 413, 422, 503))
async def create_evaluation(
    request: EvaluationRequest,
    evaluations: Evaluations,
    database: Data,
    idempotency_key: IdempotencyKey,
    priority: Annotated[Priority, Query(description="Of queued evaluations, the highest priority starts first.")] = 0,
) -> Response:
    """Queue an evaluation of a model, or of one weight version of a run. A repeated Idempotency-Key returns the
    evaluation created the first time."""
    row = await evaluations.create(request, idempotency_key, priority=priority)
    return answer_one(Detail, await _detail(database, row), created_at=f"/v1/evaluations/{row.id}")


@router.get("", response_model=EvaluationList, responses=responses(401, 422, 503))
async def list_evaluations(
    database: Data,
    cursor: Annotated[str | None, Query(max_length=1000, description="next_cursor of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    run: Annotated[str | None, Query(max_length=64, description="Only evaluations of this run's weights.")] = None,
) -> Response:
    """Evaluations, newest first. Those that have not ended have no `results` here."""
    async with database.read() as session:
        rows, next_cursor = await repository.list_evaluations(session, cursor=cursor, limit=limit, run_id=run)
    return answer(Summary, [_summary(row) for row in rows], next_cursor=next_cursor)


@router.get("/{evaluation_id}", response_model=Detail, responses=responses(401, 404, 422, 503))
async def show_evaluation(evaluation_id: str, database: Data) -> Response:
    """One evaluation with the results of the questions judged so far."""
    async with database.read() as session:
        row = await repository.get_evaluation(session, evaluation_id)
    return answer_one(Detail, await _detail(database, row))


@router.patch("/{evaluation_id}", response_model=Detail, responses=responses(400, 401, 404, 413, 422, 503))
async def change_evaluation(
    evaluation_id: str, changes: EvaluationChanges, evaluations: Evaluations, database: Data
) -> Response:
    """Change an evaluation's name or priority, in any state."""
    return answer_one(Detail, await _detail(database, await evaluations.change(evaluation_id, changes)))


@router.get("/{evaluation_id}/questions", response_model=QuestionPage, responses=responses(401, 404, 422, 503))
async def show_questions(
    evaluation_id: str,
    database: Data,
    cursor: Annotated[str | None, Query(max_length=20, description="next_cursor of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> Response:
    """What each question came to, in the order of sets and questions."""
    offset = _offset(cursor)
    async with database.read() as session:
        await repository.get_evaluation(session, evaluation_id)
        found = await repository.questions(session, evaluation_id, offset=offset, limit=limit + 1)
    return answer(QuestionItem, found[:limit], next_cursor=str(offset + limit) if len(found) > limit else None)


@router.get("/{evaluation_id}/samples", response_model=Samples, responses=responses(401, 404, 422, 503))
async def show_samples(
    evaluation_id: str,
    database: Data,
    set_name: Annotated[str, Query(alias="set", max_length=100, description="Name of the set.")],
    number: Annotated[int, Query(ge=0, le=2**31 - 1, description="Number of the question in it, from 0.")],
) -> Response:
    """A question's prompt, and up to four of its samples."""
    async with database.read() as session:
        await repository.get_evaluation(session, evaluation_id)
        found = await repository.kept_samples(session, evaluation_id, set_name, number)
    return answer_one(Samples, found)


@router.get("/{evaluation_id}/difference", response_model=Difference, responses=responses(401, 404, 422, 503))
async def show_difference(
    evaluation_id: str,
    database: Data,
    second: Annotated[str, Query(max_length=64, description="Id of the evaluation to compare with this one.")],
) -> Response:
    """What the second evaluation gained and lost against this one, on the questions that both have so far."""
    async with database.read() as session:
        for item in (evaluation_id, second):
            await repository.get_evaluation(session, item)
        before = await repository.questions(session, evaluation_id)
        after = await repository.questions(session, second)
    return answer_one(Difference, difference(evaluation_id, second, before, after))


@router.post("/{evaluation_id}/cancel", response_model=Detail, responses=ERRORS)
async def cancel_evaluation(evaluation_id: str, evaluations: Evaluations, database: Data) -> Response:
    """End an evaluation. The results that it has stay."""
    return answer_one(Detail, await _detail(database, await evaluations.cancel(evaluation_id)))


@router.delete("/{evaluation_id}", status_code=204, responses=ERRORS)
async def delete_evaluation(evaluation_id: str, evaluations: Evaluations) -> None:
    """Delete an evaluation that has ended, with its results."""
    await evaluations.delete(evaluation_id)


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not cursor.isascii() or not cursor.isdecimal() or len(cursor) > 9:
        raise ConfigurationError(
            "The cursor does not belong to this listing.",
            remedy="Pass next_cursor of the previous page.",
            field="cursor",
        )
    return int(cursor)


def _summary(row: EvaluationRow) -> records.ModelEvaluationSummary:
    return records.ModelEvaluationSummary(
        id=row.id,
        name=row.name,
        state=row.state,
        reason=row.reason,
        model=row.model,
        run=row.of_run,
        step=row.of_step,
        priority=row.priority,
        rollout_servers=list(row.rollout_servers),
        num_questions=row.num_questions,
        num_done=row.num_done,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        results=msgspec.convert(row.results or [], list[records.SetResult]),
    )


async def _detail(database: Database, row: EvaluationRow) -> records.ModelEvaluation:
    results = msgspec.convert(row.results or [], list[records.SetResult])
    if row.results is None and row.num_done:
        async with database.read() as session:
            results = await results_of(row, await repository.questions(session, row.id))
    summary = msgspec.structs.replace(_summary(row), results=results)
    return records.ModelEvaluation(**msgspec.structs.asdict(summary), request=row.request, config=row.config)

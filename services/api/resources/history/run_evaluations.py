"""What each question came to in a run's own evaluations."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from services.api.storage import history
from services.contracts.errors import NotFoundError
from services.contracts.evaluations.results import run_questions
from services.contracts.records import QuestionResult


async def evaluated_questions(session: AsyncSession, run_id: str, step: int, field: str) -> list[QuestionResult]:
    """Of all sets that were evaluated after a step.

    Raises:
        NotFoundError: names `field`; there is no such evaluation, or it does not say what each question came to.
    """
    found = await history.evaluated_questions(session, run_id, step)
    if not found:
        steps = sorted({item.step for item in await history.evaluations(session, run_id)})
        raise NotFoundError(
            f"{field} is {step}, but the run has no evaluation after that step.",
            remedy=f"Choose one of {', '.join(map(str, steps))}." if steps else "Wait for its first evaluation.",
            field=field,
        )
    if all(questions is None for questions in found.values()):
        raise NotFoundError(
            f"{field} is {step}, but that evaluation was stored without its questions by an earlier version.",
            remedy="Choose a later one, or evaluate that step with turnout evaluate --run ID --step N.",
            field=field,
        )
    return [item for split, questions in found.items() for item in run_questions(split, questions or ())]

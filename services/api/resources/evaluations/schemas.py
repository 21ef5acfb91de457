"""Requests about evaluations, other than the evaluation itself (`contracts.evaluations.request`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from services.api.resources.runs.schemas import Priority
from services.contracts.model import Section
from services.contracts.run_config import NAME_PATTERN


class EvaluationChanges(Section):
    """What may change about an evaluation at any time. Fields that are not sent stay as they are."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=NAME_PATTERN)] | None = None
    priority: Priority | None = None
    """Of queued evaluations, the one with the highest priority starts first. It interrupts none in progress."""

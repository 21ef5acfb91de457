"""Ids of evaluations. Services are assigned to them as to runs, whose ids end differently (8 digits)."""

from __future__ import annotations

import re
import secrets

_FORM = re.compile(r"evaluation-[0-9a-f]{10}")


def new_id() -> str:
    """An id that no run and no other evaluation has."""
    return f"evaluation-{secrets.token_hex(5)}"


def is_evaluation(work_id: str) -> bool:
    """Whether this is the id of an evaluation rather than of a run."""
    return _FORM.fullmatch(work_id) is not None

"""The `tests` of a question of kind `code` (docs/rewards.md)."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import msgspec

from services.contracts.errors import QuestionError
from services.contracts.messages import Question
from services.contracts.strict_json import BadJsonError, read_json

LONGEST_SECONDS = 3600.0
MOST_MEGABYTES = 1 << 20


class Case(msgspec.Struct, forbid_unknown_fields=True):
    """One test. Either `stdin` and `stdout`, or `call`, `args` and `expected`."""

    stdin: str = ""
    stdout: str | None = None
    call: str | None = None
    """Function to call, or method of a class `Solution`."""
    args: list[Any] = []
    expected: Any = msgspec.UNSET
    hidden: bool = False
    """Feedback says nothing about what goes in or should come out."""


class Tests(msgspec.Struct, forbid_unknown_fields=True):
    cases: Annotated[list[Case], msgspec.Meta(min_length=1)]
    wall_seconds: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_SECONDS)] = 5.0
    memory_mb: Annotated[int, msgspec.Meta(gt=0, le=MOST_MEGABYTES)] = 256
    partial_credit: bool = False


def read_tests(question: Question) -> Tests:
    """The question's tests.

    Raises:
        QuestionError: they are not as the classes above say.
    """
    try:
        return _tests(question.tests)
    except (BadJsonError, msgspec.ValidationError) as error:
        raise QuestionError(
            f"Question {question.id}: tests do not read as code cases ({error}).", remedy="See docs/rewards.md."
        ) from error


@lru_cache(maxsize=16)  # the rollouts of a group share them, and they may be megabytes
def _tests(text: str) -> Tests:
    tests = msgspec.convert(read_json(text), Tests)
    for number, case in enumerate(tests.cases, start=1):
        by_call = bool(case.call)
        if by_call == (case.stdout is not None) or by_call != (case.expected is not msgspec.UNSET):
            raise BadJsonError(f"case {number} has neither stdout alone nor call with expected")
    return tests

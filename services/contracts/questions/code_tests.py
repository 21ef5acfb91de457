"""The `tests` of a question of kind `code` (docs/rewards.md)."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

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
    args: list[msgspec.Raw] = []
    """JSON, passed on unparsed, so that no number is too large."""
    expected: msgspec.Raw = msgspec.Raw()
    """JSON; empty if it is not given."""
    hidden: bool = False
    """Feedback must not reveal the input or the expected output."""


class Tests(msgspec.Struct, forbid_unknown_fields=True):
    cases: Annotated[list[Case], msgspec.Meta(min_length=1)]
    wall_seconds: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_SECONDS)] = 5.0
    memory_mb: Annotated[int, msgspec.Meta(gt=0, le=MOST_MEGABYTES)] = 256
    partial_credit: bool = False
    tolerance: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    """Largest relative or absolute error of a floating-point number; None: 1e-9 relative or 1e-12 absolute."""


def read_tests(question: Question) -> Tests:
    """The question's tests.

    Raises:
        QuestionError: they are not as the classes above say.
    """
    try:
        return _tests(question.tests)
    except (BadJsonError, msgspec.DecodeError) as error:
        raise QuestionError(
            f"Question {question.id}: tests are not valid code cases ({error}).", remedy="See docs/rewards.md."
        ) from error


@lru_cache(maxsize=16)  # the rollouts of a group share them, and they may be megabytes
def _tests(text: str) -> Tests:
    read_json(text, long_numbers=True)
    tests = msgspec.json.decode(text, type=Tests)
    for number, case in enumerate(tests.cases, start=1):
        by_call = bool(case.call)
        if by_call == (case.stdout is not None) or by_call != bool(bytes(case.expected)):
            raise BadJsonError(f"case {number} has neither stdout alone nor call with expected")
    return tests

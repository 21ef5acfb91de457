"""Rows of a dataset as questions, and what is wrong with the rows of a file.

The learner reads a run's data by this. The API and the command check files by it, before anything starts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec

from services.contracts.errors import ConfigurationError, QuestionError
from services.contracts.messages import Question
from services.contracts.questions.forms import check_question, refuse, regex_pattern
from services.contracts.questions.slow_patterns import TooSlowError, explodes, limited
from services.contracts.strict_json import BadJsonError, WrittenFloat, flaw_of, parse_json

FIELDS: Final = ("id", "kind", "system", "prompt", "answer", "tests", "solution")
REQUIRED: Final = ("kind", "prompt")
FORMAT: Final = (
    "Each line must be a JSON object with the fields kind, prompt and answer, and optionally id, system, tests and "
    "solution."
)
MOST_FAULTS: Final = 10
"""Faults of a file that are told; the others are counted."""
LONGEST_LINE: Final = 64 << 20
"""Bytes. A check ends at a longer line."""
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "id": (str, int),
    "kind": (str,),
    "system": (str,),
    "prompt": (str,),
    "answer": (str, int, float, list, dict),
    "tests": (str, int, float, list, dict),
    "solution": (str, int, float, list, dict),
}


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with one row: file, line and field; and what to do."""

    message: str
    remedy: str


class Checked(msgspec.Struct):
    """What a check of a file's rows found."""

    num_rows: int = 0
    num_faults: int = 0
    faults: list[Fault] = []
    """The first of them."""
    whole: bool = True
    """False if the time was up, or a line too long, before the last row."""

    def add(self, error: ConfigurationError) -> None:
        self.num_faults += 1
        if self.num_faults <= MOST_FAULTS:
            self.faults.append(Fault(error.message, error.remedy))

    def error(self, field: str) -> ConfigurationError | None:
        """The faults as one error, which names the field of the run that names the file; None without faults."""
        if not self.faults:
            return None
        if self.num_faults == 1:
            return ConfigurationError(self.faults[0].message, remedy=self.faults[0].remedy, field=field)
        rows = "rows" if self.whole else "rows checked"
        lines = [f"{field}: {self.num_faults} of {self.num_rows} {rows} are invalid."]
        lines += [f"{fault.message} {fault.remedy}" for fault in self.faults]
        if (more := self.num_faults - len(self.faults)) > 0:
            lines.append(f"And {more} more.")
        return ConfigurationError("\n".join(lines), remedy="", field=field)


class Rows:
    """Reads the rows of one dataset, one after another, as questions."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._places: dict[str, str] = {}

    def question(self, place: str, row: Any) -> Question:
        """The question of the next row, a JSON value. Raises `ConfigurationError` naming its place."""
        index = self.num_rows
        self.num_rows += 1
        question = _question(place, row, index)
        first = self._places.setdefault(question.id, place)
        if first != place:
            raise ConfigurationError(
                f"{place}: the id {question.id[:60]!r} is already used ({first}).",
                remedy="Make the ids unique, or leave the field out.",
            )
        return question


def check_file(path: Path, limit: int | None, seconds: float) -> Checked:
    """Check the first `limit` rows of a JSON-lines file (None: all), as many as `seconds` are enough for.

    A file that cannot be read or holds no questions is a fault, too.
    """
    found = Checked()
    try:
        _check_lines(found, file_lines(path, LONGEST_LINE), limit, time.monotonic() + seconds)
        if found.whole and not found.num_rows:
            raise no_questions(str(path))
    except ConfigurationError as error:
        found.add(error)
    return found


def _check_lines(found: Checked, lines: Iterator[tuple[str, bytes]], limit: int | None, deadline: float) -> None:
    rows = Rows()
    for place, line in lines:
        if found.num_rows == limit:
            return
        if len(line) > LONGEST_LINE or time.monotonic() > deadline:
            found.whole = False
            return
        try:
            rows.question(place, read_line(place, line))
        except ConfigurationError as error:
            found.add(error)
        found.num_rows += 1
        rows.num_rows = found.num_rows  # also where the line is no row


def no_questions(source: str) -> ConfigurationError:
    return ConfigurationError(f"{source} contains no questions.", remedy=FORMAT)


def file_lines(path: Path, longest: int = -1) -> Iterator[tuple[str, bytes]]:
    """Place and bytes of each line that is not blank; of one with more than `longest` bytes, the first `longest` + 1.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(longest + 1 if longest >= 0 else -1):
                number += 1
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield f"{path}, line {number}", line
    except OSError as error:
        raise ConfigurationError(
            f"The dataset {path} cannot be read: {error.strerror}.",
            remedy="Set data.train and data.validation to existing files, with paths relative to the services' working "
            "directory.",
        ) from error


def read_line(place: str, line: bytes) -> Any:
    """The JSON value of a line. Raises `ConfigurationError` naming its place."""
    try:
        return parse_json(line.decode().strip(), as_written=True)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{place}: not UTF-8 text (byte {error.start + 1}).", remedy=FORMAT) from error
    except BadJsonError as error:
        raise ConfigurationError(f"{place}: not valid JSON ({error}).", remedy=FORMAT) from error


def _question(place: str, row: Any, index: int) -> Question:
    if not isinstance(row, Mapping):
        raise ConfigurationError(f"{place}: not a JSON object.", remedy=FORMAT)
    values = {name: _text(place, name, row[name]) for name in FIELDS if row.get(name) is not None}
    for name in (*REQUIRED, *(["id"] if "id" in values else [])):
        if not values.get(name, "").strip():
            raise ConfigurationError(f"{place}: the field {name} is missing or empty.", remedy=FORMAT)
    values.setdefault("id", str(index))
    question = Question(**values)
    try:
        if question.kind == "regex" and _is_slow(question):
            refuse(
                question,
                f"answer is {question.answer[:60]!r}, a pattern that takes exponential time for some responses",
                "Rewrite it without a repeated group that contains another repetition.",
            )
        check_question(question)
    except QuestionError as error:
        raise ConfigurationError(f"{place}: {error.message}", remedy=error.remedy) from error
    return question


def _is_slow(question: Question) -> bool:
    """Whether the pattern takes exponential time. Raises `QuestionError` for none."""
    try:
        with limited():
            pattern, options = regex_pattern(question)
    except TooSlowError:
        return True
    return explodes(pattern, options.full)


def _json_type(value: Any) -> str:
    """The JSON type of a value, with its article."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a text",
    }
    return next((name for kind, name in names.items() if isinstance(value, kind)), f"of type {type(value).__name__}")


def _text(place: str, name: str, value: Any) -> str:
    """The value of a field as text for the wire: numbers as written in the file, other values as JSON."""
    if isinstance(value, list) and name in ("prompt", "system"):
        raise ConfigurationError(
            f"{place}: the field {name} is a list, but must be a text.",
            remedy="If it is a list of messages, put the user message into prompt and the system message into system.",
        )
    if not isinstance(value, _TYPES[name]) or (name == "id" and isinstance(value, bool)):
        raise ConfigurationError(f"{place}: the field {name} is {_json_type(value)}.", remedy=FORMAT)
    if flaw := flaw_of(value):
        raise ConfigurationError(f"{place}: the field {name} is invalid: {flaw}.", remedy="Correct the row.")
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return value.text if isinstance(value, WrittenFloat) else format(Decimal(repr(value)), "f")
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:  # hub datasets can have values that JSON cannot represent
        raise ConfigurationError(f"{place}: the field {name} is not JSON ({error}).", remedy=FORMAT) from error

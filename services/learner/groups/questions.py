"""Questions: rows of a JSON-lines file or of a hub dataset, and the order in which a run uses them.

The order is a pure function of (seed, epoch), so the position in the run's feeding sequence is the only cursor.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from services.contracts.errors import ConfigurationError, QuestionError
from services.contracts.hub import PREFIX, parse_hub_data
from services.contracts.messages import Question
from services.contracts.questions.forms import RegexSettings, check_question, refuse, regex_pattern
from services.contracts.run_config import DataSection
from services.contracts.strict_json import BadJsonError, WrittenFloat, flaw_of, parse_json
from services.learner.slow_patterns import explodes

FIELDS = ("id", "kind", "system", "prompt", "answer", "tests")
REQUIRED = ("kind", "prompt")
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str, int),
    "kind": (str,),
    "system": (str,),
    "prompt": (str,),
    "answer": (str, int, float, list, dict),
    "tests": (str, int, float, list, dict),
}
FORMAT = "Each line must be a JSON object with the fields kind, prompt and answer, and optionally id, system and tests."


def load_datasets(data: DataSection) -> tuple[list[Question], list[Question]]:
    """A run's training questions and evaluation questions. Raises `ConfigurationError`."""
    train = load_questions(data.train, data.max_train_questions)
    return train, load_questions(data.validation) if data.validation else []


def load_questions(source: str, limit: int | None = None) -> list[Question]:
    """The questions of `data.train` or `data.validation`.

    Args:
        source: path of a JSON-lines file, or `hub:<owner>/<name>[:<split>]` (split `train` by default).
        limit: read only the first `limit` questions.

    Raises:
        ConfigurationError: names file, line and remedy.
    """
    rows = _hub_rows(source) if source.startswith(PREFIX) else _file_rows(Path(source))
    questions: list[Question] = []
    places: dict[str, str] = {}
    for place, row in rows:
        question = _question(place, row, len(questions))
        if question.id in places:
            raise ConfigurationError(
                f"{place}: the id {question.id[:60]!r} is already used ({places[question.id]}).",
                remedy="Make the ids unique, or leave the field out.",
            )
        places[question.id] = place
        questions.append(question)
        if limit is not None and len(questions) == limit:
            break
    if not questions:
        raise ConfigurationError(f"{source} contains no questions.", remedy=FORMAT)
    return questions


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    place = str(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                place = f"{path}, line {number}"
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield place, parse_json(text.strip(), as_written=True)
    except OSError as error:
        raise ConfigurationError(
            f"The dataset {path} cannot be read: {error.strerror}.",
            remedy="Set data.train and data.validation to existing files, with paths relative to the services' working "
            "directory.",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{place}: not UTF-8 text (byte {error.start + 1}).", remedy=FORMAT) from error
    except BadJsonError as error:
        raise ConfigurationError(f"{place}: not valid JSON ({error}).", remedy=FORMAT) from error


def _hub_rows(source: str) -> Iterable[tuple[str, Any]]:
    name, split = parse_hub_data(source)
    from datasets import load_dataset  # heavy, and most runs read files

    try:
        rows = load_dataset(f"hf://datasets/{name}", split=split)  # with hf://, so that no local folder is read instead
    except Exception as error:
        raise ConfigurationError(
            f"The dataset {source} cannot be loaded: {error}.",
            remedy="Check the name, the split and the network, or use a JSON-lines file.",
        ) from error
    return (
        (f"{source}, row {number}", row | {"tests": _unpadded(row.get("tests"))}) for number, row in enumerate(rows)
    )


def _unpadded(value: Any) -> Any:
    """A structured value without the nulls with which a table fills in the fields of other rows."""
    if isinstance(value, dict):
        return {name: _unpadded(item) for name, item in value.items() if item is not None}
    return [_unpadded(item) for item in value] if isinstance(value, list) else value


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
        check_question(question)
        if question.kind == "regex" and _explodes(*regex_pattern(question)):
            refuse(
                question,
                f"answer is {question.answer[:60]!r}, a pattern that takes exponential time for some responses",
                "Rewrite it without a repeated group that contains another repetition.",
            )
    except QuestionError as error:
        raise ConfigurationError(f"{place}: {error.message}", remedy=error.remedy) from error
    return question


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


def _explodes(pattern: re.Pattern[str], options: RegexSettings) -> bool:
    return explodes(pattern, options.full)


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


def question_index(sequence: int, num_questions: int, seed: int, shuffle: bool) -> int:
    """Index of the question at position `sequence` (from 0) of the feeding order."""
    epoch, position = divmod(sequence, num_questions)
    return epoch_order(num_questions, seed, epoch)[position] if shuffle else position


@lru_cache(maxsize=4)
def epoch_order(num_questions: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Indices of an epoch's questions: each exactly once, in an order that depends only on seed and epoch."""
    order = list(range(num_questions))
    random.Random(f"questions/{seed}/{epoch}").shuffle(order)
    return tuple(order)

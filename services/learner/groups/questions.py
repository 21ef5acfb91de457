"""Questions: rows of a JSON-lines file or of a hub dataset, and the order in which a run goes through them.

The order is a pure function of (seed, epoch), so a position in the run's feeding sequence is the only cursor there is.
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
FORMAT = "Each line is one JSON object with the fields kind, prompt, answer and, if wanted, id, system, tests."


def load_datasets(data: DataSection) -> tuple[list[Question], list[Question]]:
    """A run's questions for training and for evaluation. Raises `ConfigurationError`."""
    train = load_questions(data.train, data.max_train_questions)
    return train, load_questions(data.validation) if data.validation else []


def load_questions(source: str, limit: int | None = None) -> list[Question]:
    """The questions of `data.train` or `data.validation`; `limit` keeps the first so many.

    Args:
        source: path of a JSON-lines file, or `hub:<owner>/<name>[:<split>]` (split `train` by default).

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
                f"{place}: more than one question with id {question.id[:60]!r} (the first: {places[question.id]}).",
                remedy="Make the ids unique, or leave the field out.",
            )
        places[question.id] = place
        questions.append(question)
        if limit is not None and len(questions) == limit:
            break
    if not questions:
        raise ConfigurationError(f"{source} holds no questions.", remedy=FORMAT)
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
            remedy="Give data.train and data.validation paths that exist, relative to where the services run.",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{place}: not UTF-8 text (byte {error.start + 1}).", remedy=FORMAT) from error
    except BadJsonError as error:
        raise ConfigurationError(f"{place}: not valid JSON ({error}).", remedy=FORMAT) from error


def _hub_rows(source: str) -> Iterable[tuple[str, Any]]:
    name, split = parse_hub_data(source)
    from datasets import load_dataset  # heavy, and most runs read files

    try:
        rows = load_dataset(f"hf://datasets/{name}", split=split)  # so spelled, a folder of that name is not read
    except Exception as error:
        raise ConfigurationError(
            f"The dataset {source} cannot be loaded: {error}.",
            remedy="Check name, split and network, or use a JSON-lines file.",
        ) from error
    return (
        (f"{source}, row {number}", row | {"tests": _unpadded(row.get("tests"))}) for number, row in enumerate(rows)
    )


def _unpadded(value: Any) -> Any:
    """A table's structured values without the nulls that fill them up to the fields of all rows."""
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
                f"answer is {question.answer[:60]!r}, a pattern that takes exponential time on some replies",
                "Write it without a repeated group that holds another repetition.",
            )
    except QuestionError as error:
        raise ConfigurationError(f"{place}: {error.message}", remedy=error.remedy) from error
    return question


def _json_type(value: Any) -> str:
    """What JSON calls a value, with its article."""
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
    """Fields are text on the wire; numbers travel as they are written, structured values as JSON."""
    if isinstance(value, list) and name in ("prompt", "system"):
        raise ConfigurationError(
            f"{place}: the field {name} is a list, not a text.",
            remedy="Of a list of messages, write the user's into prompt and the system's into system.",
        )
    if not isinstance(value, _TYPES[name]) or (name == "id" and isinstance(value, bool)):
        raise ConfigurationError(f"{place}: the field {name} is {_json_type(value)}.", remedy=FORMAT)
    if flaw := flaw_of(value):
        raise ConfigurationError(f"{place}: the field {name} cannot be used: {flaw}.", remedy="Correct the row.")
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return value.text if isinstance(value, WrittenFloat) else format(Decimal(repr(value)), "f")
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:  # values of a hub dataset that JSON does not know
        raise ConfigurationError(f"{place}: the field {name} is not JSON ({error}).", remedy=FORMAT) from error


def question_index(sequence: int, num_questions: int, seed: int, shuffle: bool) -> int:
    """Which question stands at position `sequence` (from 0) of the feeding order."""
    epoch, position = divmod(sequence, num_questions)
    return epoch_order(num_questions, seed, epoch)[position] if shuffle else position


@lru_cache(maxsize=4)
def epoch_order(num_questions: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The questions of one epoch: each exactly once, in an order that depends on seed and epoch alone."""
    order = list(range(num_questions))
    random.Random(f"questions/{seed}/{epoch}").shuffle(order)
    return tuple(order)

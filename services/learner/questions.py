"""Questions: rows of a JSON-lines file or of a hub dataset, and the order in which a run goes through them.

The order is a pure function of (seed, epoch), so a position in the run's feeding sequence is the only cursor there is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from services.contracts.errors import ConfigurationError
from services.contracts.hub import PREFIX, parse_hub_data
from services.contracts.messages import Question

FIELDS = ("id", "kind", "system", "prompt", "answer", "tests")
REQUIRED = ("kind", "prompt")
FORMAT = "Each line is one JSON object with the fields kind, prompt, answer and, if wanted, id, system, tests."


def load_questions(source: str, limit: int | None = None) -> list[Question]:
    """The questions of `data.train` or `data.validation`; `limit` keeps the first so many.

    Args:
        source: path of a JSON-lines file, or `hub:<owner>/<name>[:<split>]` (split `train` by default).

    Raises:
        ConfigurationError: names file, line and remedy.
    """
    rows = _hub_rows(source) if source.startswith(PREFIX) else _file_rows(Path(source))
    questions: list[Question] = []
    for place, row in rows:
        questions.append(_question(place, row, len(questions)))
        if limit is not None and len(questions) == limit:
            break
    if not questions:
        raise ConfigurationError(f"{source} holds no questions.", remedy=FORMAT)
    _refuse_repeated_ids(source, questions)
    return questions


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                place = f"{path}, line {number}"
                try:
                    yield place, json.loads(line)
                except json.JSONDecodeError as error:
                    raise ConfigurationError(f"{place}: not valid JSON ({error.msg}).", remedy=FORMAT) from error
    except OSError as error:
        raise ConfigurationError(
            f"The dataset {path} cannot be read: {error.strerror}.",
            remedy="Give data.train and data.validation paths that exist, relative to where the services run.",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"The dataset {path} is not UTF-8 text.", remedy=FORMAT) from error


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
    return ((f"{source}, row {number}", row) for number, row in enumerate(rows))


def _question(place: str, row: Any, index: int) -> Question:
    if not isinstance(row, Mapping):
        raise ConfigurationError(f"{place}: not a JSON object.", remedy=FORMAT)
    for name in REQUIRED:
        if not row.get(name):
            raise ConfigurationError(f"{place}: the field {name} is missing or empty.", remedy=FORMAT)
    values = {name: _text(row[name]) for name in FIELDS if row.get(name) is not None}
    values.setdefault("id", str(index))
    return Question(**values)


def _text(value: Any) -> str:
    """Fields are text on the wire; structured ones (lists, objects) travel as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _refuse_repeated_ids(source: str, questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ConfigurationError(
                f"{source} has more than one question with id {question.id!r}.",
                remedy="Make the ids unique, or leave the field out.",
            )
        seen.add(question.id)


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

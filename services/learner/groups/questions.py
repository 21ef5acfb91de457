"""Questions: rows of a JSON-lines file or of a hub dataset, and the order in which a run uses them.

The order is a pure function of (seed, epoch), so the position in the run's feeding sequence is the only cursor.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from services.contracts.errors import ConfigurationError
from services.contracts.hub import PREFIX, parse_hub_data
from services.contracts.messages import Question
from services.contracts.questions.rows import Rows, file_lines, no_questions, read_line
from services.contracts.run_config import RunConfig


def load_datasets(config: RunConfig) -> tuple[list[Question], list[Question]]:
    """A run's training questions and evaluation questions; the former with solutions if the self-teacher reads them.

    Raises:
        ConfigurationError: a row is wrong, or none has a solution though the run asks for them.
    """
    data = config.data
    train = load_questions(data.train, data.max_train_questions)
    validation = load_questions(data.validation) if data.validation else []
    if config.objective.demonstration != "reference":
        return _without_solutions(train), _without_solutions(validation)
    if all(question.solution is msgspec.UNSET for question in train):
        raise ConfigurationError(
            f"objective.demonstration is reference, but no row of {data.train} has a solution.",
            remedy="Add the field solution to rows, or choose another demonstration.",
            field="objective.demonstration",
        )
    return train, _without_solutions(validation)


def _without_solutions(questions: list[Question]) -> list[Question]:
    """Other services need no solution."""
    return [msgspec.structs.replace(question, solution=msgspec.UNSET) for question in questions]


def load_questions(source: str, limit: int | None = None) -> list[Question]:
    """The questions of `data.train` or `data.validation`.

    Args:
        source: path of a JSON-lines file, or `hub:<owner>/<name>[:<split>]` (split `train` by default).
        limit: read only the first `limit` questions.

    Raises:
        ConfigurationError: names file, line and remedy.
    """
    rows = _hub_rows(source) if source.startswith(PREFIX) else _file_rows(Path(source))
    reader = Rows()
    questions = [reader.question(place, row) for place, row in islice(rows, limit)]
    if not questions:
        raise no_questions(source)
    return questions


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    return ((place, read_line(place, line)) for place, line in file_lines(path))


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

"""A run's questions, and the order in which it uses them.

The order is a pure function of the configuration and the sequence number, so the position in the run's feeding sequence
is the only cursor.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from services.contracts.errors import ConfigurationError
from services.contracts.messages import Question
from services.contracts.questions.reading import read_source
from services.contracts.questions.schedule import Schedule
from services.contracts.questions.source import Source, ValidationSet
from services.contracts.run_config import RunConfig


class Pool(NamedTuple):
    """The questions of one source of a mixture."""

    name: str
    weight: float
    questions: Sequence[Question]


class Mixture:
    """Training questions by their place in the feeding order."""

    def __init__(self, pools: Sequence[Pool], seed: int, shuffle: bool) -> None:
        self._pools, self._shuffle = pools, shuffle
        self._seeds = [str(seed) if len(pools) == 1 else f"{seed}/{pool.name}" for pool in pools]
        self._schedule = Schedule([pool.weight for pool in pools])

    @classmethod
    def of(cls, questions: Sequence[Question], seed: int = 0, shuffle: bool = True) -> Mixture:
        """A mixture of one source."""
        return cls([Pool("train", 1.0, questions)], seed, shuffle)

    def __len__(self) -> int:
        return sum(len(pool.questions) for pool in self._pools)

    @property
    def names(self) -> list[str]:
        """Names of the sources."""
        return [pool.name for pool in self._pools]

    @property
    def sizes(self) -> list[int]:
        """Number of questions of each source."""
        return [len(pool.questions) for pool in self._pools]

    @property
    def end(self) -> int:
        """Number of prompts whose question is known: all."""
        return sys.maxsize

    def source_of(self, sequence: int) -> tuple[int, int]:
        """The source of prompt `sequence` (from 0), and how many prompts that source had before."""
        return self._schedule.at(sequence)

    def at(self, sequence: int) -> Question:
        """The question of prompt `sequence`, from 0."""
        number, position = self._schedule.at(sequence)
        index = question_index(position, len(self._pools[number].questions), self._seeds[number], self._shuffle)
        return self.question(number, index)

    def order(self, source: int) -> list[int]:
        """The questions of a source, as places in it, in the order of its first epoch."""
        size = len(self._pools[source].questions)
        return [question_index(position, size, self._seeds[source], self._shuffle) for position in range(size)]

    def question(self, source: int, index: int) -> Question:
        return self._pools[source].questions[index]


class Datasets(NamedTuple):
    """All questions of a run."""

    train: Mixture
    validation: list[tuple[ValidationSet, list[Question]]]


def load_datasets(config: RunConfig) -> Datasets:
    """A run's training questions, with solutions if the self-teacher or a probe reads them, and its validation sets.

    Raises:
        ConfigurationError: a row is wrong, or none has a solution though the run asks for them.
    """
    data, wanted = config.data, config.objective.demonstration == "reference"
    several = not isinstance(data.train, str)
    pools = [Pool(source.label, source.weight, load_questions(source, several)) for source in data.train_sources()]
    if wanted and all(question.solution is msgspec.UNSET for pool in pools for question in pool.questions):
        raise ConfigurationError(
            "objective.demonstration is reference, but no row of "
            f"{', '.join(source.path for source in data.train_sources())} has a solution.",
            remedy="Add the field solution to rows, or choose another demonstration.",
            field="objective.demonstration",
        )
    if not wanted and config.probe is None:
        pools = [pool._replace(questions=_without_solutions(pool.questions)) for pool in pools]
    sets = [(item, _without_solutions(load_questions(item))) for item in data.validation_sets()]
    return Datasets(Mixture(pools, config.training.seed, data.shuffle), sets)


def _without_solutions(questions: Sequence[Question]) -> list[Question]:
    """Other services need no solution."""
    return [msgspec.structs.replace(question, solution=msgspec.UNSET) for question in questions]


def load_questions(source: Source, named: bool = False) -> list[Question]:
    """The questions of a source; with `named`, their ids begin with its name.

    Raises:
        ConfigurationError: names file, line and remedy.
    """
    questions = [question for _, question in read_source(source)]
    if named:
        return [msgspec.structs.replace(question, id=f"{source.label}/{question.id}") for question in questions]
    return questions


def question_index(sequence: int, num_questions: int, seed: int | str, shuffle: bool) -> int:
    """Index of the question at position `sequence` (from 0) of the order of a source."""
    epoch, position = divmod(sequence, num_questions)
    return epoch_order(num_questions, str(seed), epoch)[position] if shuffle else position


@lru_cache(maxsize=32)  # an epoch ends and the next begins in one step, for every source
def epoch_order(num_questions: int, seed: str, epoch: int) -> tuple[int, ...]:
    """Indices of an epoch's questions: each exactly once, in an order that depends only on seed and epoch."""
    order = list(range(num_questions))
    random.Random(f"questions/{seed}/{epoch}").shuffle(order)
    return tuple(order)

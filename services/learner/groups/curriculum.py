"""A curriculum: which question is asked next depends on how earlier answers to it turned out (`data.curriculum`).

Each question of a source is in a pool by its last result, or in flight. A source's turn still comes by the weights of
the sources; among its pools, the weights of the curriculum decide (start-time fair queueing, Goyal et al. 1996), and in
a pool, the question that has waited longest is next.

A prompt's question is chosen when the decision is made that gives the feeder credit for it: the results known by then
follow from the feeding order alone, not from when a server answers or weights are published. A replay therefore asks
the same questions. Published weights may be ahead of a replay, so the feeder waits for choices (`end`) besides credit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from services.contracts.data import CurriculumSection
from services.contracts.messages import Question
from services.contracts.run_config import RunConfig
from services.learner.groups.feeder import Credit
from services.learner.groups.ledger import Ledger
from services.learner.groups.questions import Mixture

POOLS: Final = ("unseen", "mixed", "failed", "solved")


class SourceState(msgspec.Struct, forbid_unknown_fields=True):
    """Pools of one source, as a checkpoint contains them. Questions are positions in the source."""

    num_questions: int
    pools: dict[str, list[int]]
    solved_at: dict[int, int]
    passes: dict[str, float]
    clock: float


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """The question of a prompt in flight."""

    source: int
    question: int
    pool: str
    """Where the question came from, and returns to if its group is dropped."""


class CurriculumState(msgspec.Struct, forbid_unknown_fields=True):
    """A curriculum between two steps, as a checkpoint contains it."""

    sources: dict[str, SourceState]
    choices: dict[int, Choice]
    """By sequence number: prompts chosen and not yet decided."""


@dataclass(slots=True)
class Pools:
    """The questions of one source that are not in flight."""

    waiting: dict[str, deque[int]]
    solved_at: dict[int, int] = field(default_factory=dict)
    """Step in which a waiting solved question was solved."""
    passes: dict[str, float] = field(default_factory=lambda: dict.fromkeys(POOLS, 0.0))
    clock: float = 0.0

    @classmethod
    def of(cls, order: Sequence[int]) -> Pools:
        """All questions unseen, in this order."""
        return cls({pool: deque(order if pool == "unseen" else ()) for pool in POOLS})

    def take(self, weights: Mapping[str, float]) -> tuple[int, str] | None:
        """The next question and its pool. Pools without weight serve if the others are empty. None: all in flight."""
        filled = [pool for pool in POOLS if self.waiting[pool]]
        wanted = [pool for pool in filled if weights[pool]]
        if wanted:
            begins = {pool: max(self.passes[pool], self.clock) for pool in wanted}
            pool = min(wanted, key=lambda name: begins[name])
            self.clock = begins[pool]
            self.passes[pool] = begins[pool] + 1.0 / weights[pool]
        elif filled:
            pool = filled[-1]
        else:
            return None
        question = self.waiting[pool].popleft()
        self.solved_at.pop(question, None)
        return question, pool

    def put(self, question: int, pool: str, step: int) -> None:
        self.waiting[pool].append(question)
        if pool == "solved":
            self.solved_at[question] = step

    def release(self, step: int) -> None:
        """Solved questions of `step` and before are unseen again."""
        solved = self.waiting["solved"]
        while solved and self.solved_at[solved[0]] <= step:
            question = solved.popleft()
            del self.solved_at[question]
            self.waiting["unseen"].append(question)

    def state(self, num_questions: int) -> SourceState:
        pools = {pool: list(waiting) for pool, waiting in self.waiting.items()}
        return SourceState(num_questions, pools, dict(self.solved_at), dict(self.passes), self.clock)


class Curriculum:
    """Chooses every prompt's question. `decide`, `finish` and `extend` are the training thread's; the feeder reads."""

    def __init__(
        self,
        mixture: Mixture,
        section: CurriculumSection,
        credit: Credit,
        decided: int = 0,
        step: int = 0,
        state: CurriculumState | None = None,
    ) -> None:
        """
        Args:
            decided, step: sequence number of the first prompt to decide, and number of steps done.
            state: the checkpoint's. A source that it lacks, or whose number of questions has changed, starts unseen.
        """
        self._mixture, self._section, self._credit = mixture, section, credit
        self._weights = {pool: float(getattr(section, pool)) for pool in POOLS}
        self._step = step
        self._choices: dict[int, Choice] = {}
        self._sources = [Pools.of(mixture.order(number)) for number in range(len(mixture.names))]
        if state is not None:
            self._restore(state, decided)
        self.end = decided + len(self._choices)
        """Number of prompts chosen since the run began: the feeder may not go further."""

    @classmethod
    def for_run(
        cls, config: RunConfig, mixture: Mixture, ledger: Ledger, step: int, state: CurriculumState | None
    ) -> Curriculum | None:
        """The run's curriculum after `step`, if it has one; `state` is what the checkpoint contains."""
        if config.data.curriculum is None:
            return None
        training = config.training
        credit = Credit(training.prompts_per_step, training.max_staleness, training.steps)
        made = cls(mixture, config.data.curriculum, credit, ledger.decided, step, state)
        made.extend(step, ledger.num_untrained)
        return made

    def _restore(self, state: CurriculumState, decided: int) -> None:
        names, sizes = self._mixture.names, self._mixture.sizes
        kept = {name for name, size in zip(names, sizes, strict=True) if _fits(state.sources.get(name), size)}
        for number, name in enumerate(names):
            if name in kept:
                found = state.sources[name]
                waiting = {pool: deque(found.pools[pool]) for pool in POOLS}
                self._sources[number] = Pools(waiting, found.solved_at, found.passes, found.clock)
        whole = kept == set(names) == set(state.sources) and sorted(state.choices) == [
            *range(decided, decided + len(state.choices))
        ]
        if whole:
            self._choices = dict(state.choices)
            return
        for choice in state.choices.values():  # a fork with other sources or steps: chosen again
            if choice.source < len(names) and names[choice.source] in kept:
                self._sources[choice.source].put(choice.question, choice.pool, self._step)

    def at(self, sequence: int) -> Question:
        """The question of a prompt below `end`."""
        choice = self._choices.get(sequence)
        if choice is None:  # decided: a queue server that lost its cursor feeds it again, and the batcher has the group
            return self._mixture.at(sequence)
        return self._mixture.question(choice.source, choice.question)

    def decide(self, sequence: int, share_correct: float | None) -> None:
        """Take note of a group's result: the share of its usable rollouts that are correct; None if it was dropped."""
        choice = self._choices.pop(sequence)
        pool = choice.pool if share_correct is None else pool_of(share_correct)
        for number, other in self._choices.items():  # a small source may have a question in flight twice
            if (other.source, other.question) == (choice.source, choice.question):
                self._choices[number] = msgspec.structs.replace(other, pool=pool)
                return
        self._sources[choice.source].put(choice.question, pool, self._step)

    def finish(self, step: int) -> None:
        """Take note that the batch of `step` is complete."""
        self._step = step
        if (rest := self._section.return_after_steps) is not None:
            for source in self._sources:
                source.release(step - rest)

    def extend(self, step: int, num_untrained: int) -> None:
        """Choose for all prompts that may be fed once `step` is published, after so many drops and replacements."""
        limit = self._credit.limit(step, num_untrained)
        while self.end < limit:
            number, position = self._mixture.source_of(self.end)
            found = self._sources[number].take(self._weights)
            if found is None:
                self._choices[self.end] = self._again(number, position)
            else:
                self._choices[self.end] = Choice(number, *found)
            self.end += 1

    def _again(self, number: int, position: int) -> Choice:
        """A question that is in flight already."""
        flying = [choice for choice in self._choices.values() if choice.source == number]
        return flying[position % len(flying)]

    def sizes(self) -> dict[str, int]:
        """Number of waiting questions by pool."""
        return {pool: sum(len(source.waiting[pool]) for source in self._sources) for pool in POOLS}

    def state(self) -> CurriculumState:
        """A copy for a checkpoint."""
        parts = zip(self._mixture.names, self._sources, self._mixture.sizes, strict=True)
        return CurriculumState({name: pools.state(size) for name, pools, size in parts}, dict(self._choices))


def pool_of(share_correct: float) -> str:
    if share_correct == 0.0:
        return "failed"
    return "solved" if share_correct == 1.0 else "mixed"


def _fits(state: SourceState | None, num_questions: int) -> bool:
    return state is not None and state.num_questions == num_questions and state.pools.keys() == set(POOLS)

"""Which questions a curriculum asks: by weights, with rest for solved ones, and the same after a crash."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts.data import CurriculumSection
from services.contracts.messages import Question, ScoredGroup
from services.learner.groups.batcher import Batcher
from services.learner.groups.curriculum import Curriculum, CurriculumState
from services.learner.groups.feeder import Credit
from services.learner.groups.ledger import Ledger
from services.learner.groups.questions import Mixture, Pool
from tests.services.learner.conftest import delivered, make_group

REWARDS = {"failed": (0.0, 0.0), "mixed": (1.0, 0.0), "solved": (1.0, 1.0)}


def mixture(*sizes: int, weights: tuple[float, ...] = (2.0, 1.0)) -> Mixture:
    pools = [
        Pool(f"s{number}", weight, [Question(id=f"{number}/{n}", kind="k", prompt="q") for n in range(size)])
        for number, (size, weight) in enumerate(zip(sizes, weights, strict=False))
    ]
    return Mixture(pools, seed=3, shuffle=True)


def is_mixed(group: ScoredGroup) -> bool:
    return len({verdict.reward for verdict in group.verdicts}) > 1


class Run:
    """A run with a curriculum: a prompt's result follows from its question and its number. Records what was asked."""

    def __init__(
        self,
        questions: Mixture,
        section: CurriculumSection,
        *,
        max_staleness: int = 1,
        ledger: Ledger | None = None,
        state: CurriculumState | None = None,
        step: int = 0,
    ) -> None:
        self.credit = Credit(4, max_staleness, 1000)
        ledger = ledger or Ledger()
        self.curriculum = Curriculum(questions, section, self.credit, ledger.decided, step, state)
        self.curriculum.extend(step, ledger.num_untrained)
        self.batcher = Batcher(4, 1000, ledger, refill=2, teaches=is_mixed, curriculum=self.curriculum)
        self.step = step
        self.asked: dict[int, str] = {}
        self.sources: Counter[str] = Counter()

    def train(self, num_steps: int, outcome: dict[str, str], dice: random.Random | None = None) -> None:
        """Arrivals are shuffled with `dice`. `outcome` is by question; others are failed or mixed by their number."""
        for _ in range(num_steps):
            while (batch := self.batcher.take(self.step + 1)) is None:
                limit = self.credit.limit(self.step, self.batcher.ledger.num_untrained)
                assert self.curriculum.end >= limit, "the feeder has credit for a prompt without a question"
                wanted = [n for n in range(self.batcher.next_sequence, limit) if not self.batcher.has(n)]
                for sequence in dice.sample(wanted, len(wanted)) if dice else wanted:
                    name = self.asked[sequence] = self.curriculum.at(sequence).id
                    kind = outcome.get(name, ("failed", "mixed", "faulty")[(sequence * 7 + len(name)) % 3])
                    faulty = (0, 1) if kind == "faulty" else ()
                    group = make_group(sequence, rewards=REWARDS.get(kind, (0.0, 0.0)), faulty=faulty)
                    self.batcher.offer(delivered(group))
                    if dice and dice.random() < 0.5:
                        break
            assert len(batch.groups) == 4
            self.step += 1


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=2),
    max_staleness=st.integers(0, 2),
    rest=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_a_replay_from_any_checkpoint_asks_the_same_questions(
    sizes: list[int], max_staleness: int, rest: int | None, seed: int
) -> None:
    """The state goes through JSON, as in a checkpoint, and results arrive in another order."""
    questions, section = mixture(*sizes), CurriculumSection(return_after_steps=rest)
    outcome = {f"0/{n}": "solved" for n in range(0, 30, 2)}
    calm = Run(questions, section, max_staleness=max_staleness)
    checkpoints = []
    for _ in range(6):
        calm.train(1, outcome)
        checkpoints.append((calm.batcher.boundary.to_json(), msgspec.json.encode(calm.batcher.curriculum_boundary)))
    for step, (ledger, state) in enumerate(checkpoints, 1):
        resumed = Run(
            questions,
            section,
            max_staleness=max_staleness,
            ledger=Ledger.from_json(ledger),
            state=msgspec.json.decode(state, type=CurriculumState),
            step=step,
        )
        resumed.train(6 - step, outcome, random.Random(seed))
        asked = {n: name for n, name in resumed.asked.items() if n < calm.batcher.next_sequence}
        assert asked.items() <= calm.asked.items()
        assert resumed.batcher.curriculum_boundary in (calm.batcher.curriculum_boundary, None)


def test_no_question_is_lost_or_in_two_places() -> None:
    questions = mixture(9, 5)
    run = Run(questions, CurriculumSection(failed=1.0, solved=0.5))
    for _ in range(30):
        run.train(1, {"0/1": "solved", "1/2": "solved"})
        state = run.curriculum.state()
        for number, (name, size) in enumerate(zip(questions.names, questions.sizes, strict=True)):
            waiting = [question for pool in state.sources[name].pools.values() for question in pool]
            flying = {choice.question for choice in state.choices.values() if choice.source == number}
            assert len(waiting) == len(set(waiting))
            assert {*waiting} | flying == set(range(size))
            assert not flying.intersection(waiting)


def test_sources_keep_their_weights_whatever_is_solved() -> None:
    run = Run(mixture(40, 40), CurriculumSection())
    run.train(30, {f"0/{n}": "solved" for n in range(38)})
    sources = Counter(name[0] for name in run.asked.values())
    assert abs(sources["0"] - 2 * sources["1"]) <= 3


def test_solved_questions_rest_and_return() -> None:
    solved = {f"0/{n}": "solved" for n in range(100)} | {f"0/{n}": "mixed" for n in range(10)}
    retired = Run(mixture(100, weights=(1.0,)), CurriculumSection())
    retired.train(80, solved)
    late = Counter(name for number, name in retired.asked.items() if number > 260)
    assert set(late) == {f"0/{n}" for n in range(10)}, "the others are retired"
    back = Run(mixture(100, weights=(1.0,)), CurriculumSection(return_after_steps=20))
    back.train(80, solved)
    late = Counter(name for number, name in back.asked.items() if number > 260)
    assert len(late) > 10


def test_pools_are_asked_in_proportion_to_their_weights() -> None:
    outcome = {f"0/{n}": "mixed" if n < 30 else "failed" for n in range(60)}
    run = Run(mixture(60, weights=(1.0,)), CurriculumSection(mixed=3.0, failed=1.0))
    run.train(100, outcome)
    late = Counter(outcome[name] for number, name in run.asked.items() if number > 100)
    assert late["mixed"] / late["failed"] == pytest.approx(3.0, rel=0.1)


def test_a_prompt_that_is_fed_again_after_its_decision_has_a_question() -> None:
    """A failover may take the feeder's cursor back; the learner knows the groups as duplicates."""
    run = Run(mixture(20, weights=(1.0,)), CurriculumSection())
    run.train(3, {})
    before = run.curriculum.state()
    assert run.curriculum.at(0).kind == "k"
    assert run.curriculum.state() == before


def test_a_fork_with_other_data_starts_unseen_and_with_another_batch_keeps_the_pools() -> None:
    run = Run(mixture(20, weights=(1.0,)), CurriculumSection())
    run.train(5, {f"0/{n}": "solved" for n in range(20)})
    state = run.curriculum.state()
    credit = Credit(8, 0, 100)
    other = Curriculum(mixture(30, weights=(1.0,)), CurriculumSection(), credit, 20, 5, state)
    assert other.sizes() == {"unseen": 30, "mixed": 0, "failed": 0, "solved": 0}
    batch = Curriculum(mixture(20, weights=(1.0,)), CurriculumSection(), credit, 40, 5, state)
    assert sum(batch.sizes().values()) == 20, "prompts that the parent had in flight are back in their pools"
    assert batch.sizes()["solved"] > 0

"""Feeder credit and batches: staleness is bounded by construction, and every group ends in exactly one place."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.messages import PromptTask, Question, ScoredGroup
from services.contracts.run_config import parse_run_config
from services.learner.groups.batcher import Batcher
from services.learner.groups.feeder import Credit, Feeder, train_sampling
from services.learner.groups.ledger import Ledger
from services.learner.groups.questions import Mixture
from services.learner.groups.routed import teaches
from services.runtime.queue.queue import Delivery, Queue
from tests.services.learner.conftest import delivered, make_group


def is_mixed(group: ScoredGroup) -> bool:
    return len({verdict.reward for verdict in group.verdicts}) > 1


@given(
    prompts_per_step=st.integers(1, 5),
    max_staleness=st.integers(0, 3),
    steps=st.integers(1, 8),
    seed=st.integers(0, 10_000),
    drop_chance=st.sampled_from([0.0, 0.1, 0.5]),
    refill=st.sampled_from([0, 1, 4]),
)
@settings(max_examples=150, deadline=None)
def test_a_ring_fed_by_credit_never_trains_a_token_that_is_too_old(
    prompts_per_step: int, max_staleness: int, steps: int, seed: int, drop_chance: float, refill: int
) -> None:
    """Servers sample at any allowed moment, with the oldest weights they may; groups arrive in any order."""
    dice = random.Random(seed)
    credit = Credit(prompts_per_step, max_staleness, steps)
    batcher = Batcher(prompts_per_step, max_staleness, Ledger(), refill=refill, teaches=is_mixed)
    fed = version = 0
    in_work: list[tuple[int, int]] = []
    while version < steps:
        limit = credit.limit(version, batcher.ledger.num_untrained)
        untrained = batcher.ledger.num_untrained
        in_work += [(n, credit.min_weight_version(credit.step_of(n, untrained))) for n in range(fed, max(fed, limit))]
        fed = max(fed, limit)
        assert all(needed <= version for _, needed in in_work), "fed a task that no server may sample yet"
        assert in_work, "the ring is stuck"
        sequence, needed = in_work.pop(dice.randrange(len(in_work)))
        faulty = (0, 1, 2) if dice.random() < drop_chance else ()
        rewards = (1.0, 1.0, dice.choice((0.0, 1.0)))
        batcher.offer(delivered(make_group(sequence, rewards=rewards, version=needed, faulty=faulty)))
        while version < steps and (batch := batcher.take(version + 1)) is not None:
            assert len(batch.groups) == prompts_per_step
            assert batch.num_replaced <= refill
            assert batch.num_replaced == refill or all(is_mixed(group) for group in batch.groups)
            version += 1
        assert (
            batcher.ledger.dropped["stale"] == 0
        )  # limited here: each drop is replaced, so drops alone would continue indefinitely
        counts = batcher.ledger.groups(fed)
        here = batcher.num_waiting + batcher.num_chosen + len(in_work)
        assert counts["fed"] == counts["trained"] + batcher.ledger.num_untrained + counts["in_flight"]
        assert counts["in_flight"] == here
    assert batcher.ledger.trained == steps * prompts_per_step
    assert fed - batcher.ledger.decided <= (max_staleness + 1) * prompts_per_step


@given(
    order=st.permutations(list(range(12))),
    faulty=st.sets(st.integers(0, 11), max_size=4),
    dull=st.sets(st.integers(0, 11)),
)
def test_batches_depend_neither_on_the_order_of_arrival_nor_on_a_crash(
    order: list[int], faulty: set[int], dull: set[int]
) -> None:
    """A learner that starts from any checkpoint makes the batches that follow it again."""

    def batches(arrivals: list[int], ledger: Ledger, step: int = 0) -> list[tuple[list[str], int, dict[str, int]]]:
        batcher = Batcher(2, 9, ledger, refill=2, teaches=is_mixed)
        made: list[tuple[list[str], int, dict[str, int]]] = []
        for sequence in arrivals:
            rewards = (1.0, 1.0, 1.0) if sequence in dull else (1.0, 0.0, 0.0)
            batcher.offer(delivered(make_group(sequence, rewards=rewards, faulty=(0, 1) if sequence in faulty else ())))
            while (batch := batcher.take(step + len(made) + 1)) is not None:
                names = [group.group.task.group_id for group in batch.groups]
                made.append((names, batch.num_replaced, batcher.boundary.to_json()))
        return made

    made = batches(sorted(order), Ledger())
    assert batches(order, Ledger()) == made
    for step, (_, _, checkpoint) in enumerate(made, 1):
        assert batches(order, Ledger.from_json(checkpoint), step) == made[step:]


def test_groups_that_teach_nothing_are_replaced_up_to_the_bound() -> None:
    batcher = Batcher(2, 1, Ledger(), refill=2, teaches=is_mixed)
    dull = {0, 1, 3, 5}
    for sequence in range(6):
        batcher.offer(delivered(make_group(sequence, rewards=(0.0, 0.0) if sequence in dull else (1.0, 0.0))))
    first, second = batcher.take(1), batcher.take(2)
    assert first is not None
    assert [group.group.task.sequence for group in first.groups] == [2, 3], "after two, what comes is taken"
    assert first.num_replaced == 2
    assert second is None, "the bound is a step's: 5 is passed over again"
    assert Credit(2, 1, 9).limit(1, batcher.ledger.num_untrained) == 6 + 3
    assert batcher.boundary.groups(6) == Ledger(trained=2, replaced=2).groups(6)
    assert [outcome for _, outcome in batcher.untrained] == ["replaced"] * 3


def test_a_replaced_group_is_no_sign_of_a_fault() -> None:
    batcher = Batcher(1, 0, Ledger(), refill=9, teaches=is_mixed)
    for sequence, faulty in ((0, (0, 1)), (1, ()), (2, (0, 1)), (3, ())):
        batcher.offer(delivered(make_group(sequence, rewards=(1.0, 1.0), faulty=faulty)))
    assert batcher.take(1) is None
    assert (batcher.num_dropped_in_a_row, batcher.ledger.num_dropped, batcher.ledger.replaced) == (0, 2, 2)


@pytest.mark.parametrize(
    ("objective", "rewards", "feedback", "expected"),
    [
        ({}, (1.0, 1.0), "", False),
        ({}, (0.0, 0.0), "", False),
        ({}, (0.0, 0.0), "Wrong unit.", False),
        ({"feedback": "fallback"}, (0.0, 0.0), "Wrong unit.", True),
        ({"feedback": "fallback"}, (1.0, 1.0), "Well done.", False),
        ({"name": "grpo"}, (0.0, 0.2), "", True),
        ({"name": "sdpo"}, (0.0, 0.2), "", False),
        ({"name": "sdpo"}, (1.0, 1.0), "", True),
        ({"name": "sdpo", "distil": "incorrect"}, (1.0, 1.0), "", False),
        ({"name": "advantage_mix"}, (1.0, 1.0), "", True),
        ({"name": "advantage_mix", "mix_lambda": 1.0}, (1.0, 1.0), "", False),
        ({"name": "rlsd"}, (1.0, 1.0), "", False),
        ({"demonstration": "closest"}, (1.0, 1.0, 0.0), "", True),
    ],
)
def test_what_teaches_depends_on_the_objective(
    objective: dict[str, object], rewards: tuple[float, ...], feedback: str, expected: bool
) -> None:
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    config = parse_run_config(values | {"objective": objective})
    assert teaches(make_group(0, rewards=rewards, feedback=feedback), config) == expected


def test_drops_say_why_and_give_replacements() -> None:
    batcher = Batcher(1, 1, Ledger(), lost={3: "lost", 4: "fatal"})
    batcher.offer(delivered(make_group(0, faulty=(0, 1, 2))))
    batcher.offer(delivered(make_group(1, faulty=(0, 2))))
    batcher.offer(delivered(make_group(2, version=1)))
    assert batcher.take(4) is None
    assert batcher.ledger.dropped == {"stale": 1, "faulty": 1, "too_few": 1, "lost": 1, "fatal": 1}
    assert batcher.last_drop == ("fatal", "the message crashed the services that processed it; see their logs")
    assert Credit(1, 1, 100).limit(3, batcher.ledger.num_dropped) == 5 + 5
    batcher.offer(delivered(make_group(5, version=2, faulty=(1,))))
    assert batcher.take(4) is not None


def test_a_duplicate_group_is_trained_once_and_acknowledged_with_the_first() -> None:
    """A failover can take the first from the queue server, after which a checkpoint still has to come."""
    batcher = Batcher(1, 9, Ledger())
    first, second = make_group(0), make_group(1)
    for message_id, group in (("a", first), ("b", second), ("c", second), ("d", first)):
        batcher.offer(Delivery(group, "scored", message_id))
    assert batcher.take(1) is not None
    assert [delivery.message_id for delivery in batcher.take_settled()] == ["a", "d"]
    batcher.offer(Delivery(first, "scored", "e"))
    assert batcher.take(2) is not None
    assert [delivery.message_id for delivery in batcher.take_settled()] == ["b", "c", "e"]
    assert batcher.ledger.trained == 2


def test_a_checkpoint_covers_groups_up_to_the_last_complete_batch() -> None:
    batcher = Batcher(2, 0, Ledger())
    for sequence in range(3):
        batcher.offer(delivered(make_group(sequence, faulty=(0, 1, 2) if sequence == 2 else ())))
    assert batcher.take(1) is not None
    assert batcher.take(2) is None
    assert batcher.ledger.num_dropped == 1
    assert batcher.boundary.to_json() == Ledger(trained=2).to_json()
    assert len(batcher.take_settled()) == 2
    resumed = Batcher(2, 0, Ledger.from_json(batcher.boundary.to_json()))
    assert resumed.next_sequence == 2


@pytest.mark.parametrize("calls", [1, 2])
async def test_feeding_is_atomic_and_repeatable(redis: Redis, calls: int) -> None:
    config = parse_run_config(
        {
            "name": "r",
            "model": {"path": "m"},
            "data": {"train": "t"},
            "training": {"steps": 9, "prompts_per_step": 3, "max_staleness": 1, "seed": 3},
        }
    )
    questions = Mixture.of([Question(id=str(n), kind="k", prompt=f"q{n}") for n in range(4)], seed=3)
    feeders = [Feeder(Queue(redis, "learner", "learner"), "r", config, questions) for _ in range(calls)]
    for feeder in feeders:
        await feeder.feed(published_version=0, num_untrained=0)
        await feeder.feed(published_version=1, num_untrained=2)
    entries = await redis.xrange(streams.prompts("r"))
    tasks = [codec.decode(fields[b"m"], PromptTask) for _, fields in entries]
    assert [task.sequence for task in tasks] == list(range(11))
    assert [task.min_weight_version for task in tasks[:7]] == [0, 0, 0, 0, 0, 0, 0]
    assert len({task.question.id for task in tasks[:4]}) == 4
    assert feeders[-1].fed == 11


def test_options_of_sampling_are_sent_only_if_they_are_set() -> None:
    """So that servers of an older version still understand the tasks of runs that do not use them."""
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    plain = train_sampling(parse_run_config(values))
    assert plain.extras == {"min_p": 0.0, "presence_penalty": 0.0}
    assert not {"min_p", "presence_penalty"} & msgspec.to_builtins(plain).keys()
    sampling = train_sampling(parse_run_config(values | {"rollout": {"min_p": 0.1, "presence_penalty": -0.5}}))
    assert sampling.extras == {"min_p": 0.1, "presence_penalty": -0.5}

"""The numbers of one step, compared with values computed by hand."""

from __future__ import annotations

import random

import msgspec
import pytest

from services.contracts.evaluations.statistics import pass_at_k
from services.contracts.events import StepFinished
from services.contracts.messages import RewardPart, Thinking, VersionSpan
from services.contracts.run_config import RunConfig, parse_run_config
from services.contracts.step_metrics import STEP_HISTOGRAMS, STEP_METRICS
from services.learner.groups.prepare import PreparedGroup, prepare_group
from services.learner.program.commands import Step
from services.learner.program.evaluate import summarise
from services.learner.program.session import TrainingSession
from services.learner.program.step_report import (
    group_metrics,
    part_means,
    source_numbers,
    staleness_histogram,
    step_histograms,
    step_numbers,
    token_ages,
    with_rates,
)
from services.learner.update.update import run_minibatch
from tests.services.learner.conftest import Letters, make_group
from tests.services.learner.objectives import builders
from tests.services.learner.objectives.builders import PlainEngine, random_sequences


def run_config(**objective: object) -> RunConfig:
    return parse_run_config(
        {
            "name": "r",
            "model": {"path": "m"},
            "data": {"train": "t"},
            "objective": objective,
            "training": {"steps": 1},
        }
    )


OPTIONAL = {name for name, metric in STEP_METRICS.items() if metric.optional}


def prepared() -> list[PreparedGroup]:
    """Tokens of versions 0 to 3; a fault, a truncated response, and a group that is all correct."""
    mixed = make_group(0, rewards=(0.0, 1.0, 0.25, 0.0), version=3, faulty=(3,))
    rollouts = list(mixed.group.rollouts)
    rollouts[2] = msgspec.structs.replace(
        rollouts[2], weight_versions=[VersionSpan(0, 0, 1), VersionSpan(2, 1, 2)], finish_reason="length"
    )
    mixed = msgspec.structs.replace(mixed, group=msgspec.structs.replace(mixed.group, rollouts=rollouts))
    config = run_config(mask_truncated=True, skip_uninformative_groups=True)
    return [prepare_group(group, config, Letters()) for group in (mixed, make_group(1, rewards=(1.0, 1.0), version=1))]


def test_groups_without_a_correct_rollout_are_counted() -> None:
    failed = prepare_group(make_group(2, rewards=(0.0, 0.25), version=1), run_config(), Letters())
    assert group_metrics([*prepared(), failed], 3, 0)["failed_group_ratio"] == pytest.approx(1 / 3)


def test_a_steps_numbers_are_those_of_its_groups() -> None:
    found = group_metrics(prepared(), 3, num_replaced=3)
    assert found == pytest.approx(
        {
            "reward_mean": (0 + 1 + 0.25 + 1 + 1) / 5,
            "accuracy": 3 / 5,
            "routing_ratio_grpo": 1 / 5,
            "routing_ratio_sdpo": 1 / 5,
            "teacher_information_ratio": 4 / 5,
            "response_tokens_mean": 2,
            "response_tokens_max": 2,
            "thinking_tokens_mean": 0,
            "unfinished_thinking_ratio": 0,
            "truncated_ratio": 1 / 5,
            "teacher_wording_ratio": 0,
            "staleness_mean": (4 * 0 + 1 * 3 + 1 * 1 + 4 * 2) / 10,
            "staleness_max": 3,
            "num_groups": 2,
            "num_rollouts": 5,
            "num_excluded_rollouts": 1,
            "num_masked_rollouts": 1,
            "demonstrations_mean": 1,
            "wrong_hint_ratio": 0,
            "num_uninformative_groups": 1,
            "num_replaced_groups": 3,
            "sampled_teaching_ratio": 1 / 5,
            "trained_teaching_ratio": 1 / 2,
            "mixed_group_ratio": 1 / 2,
            "failed_group_ratio": 0.0,
        }
    )


def test_thinking_is_counted_over_all_used_rollouts() -> None:
    groups = prepared()
    group = groups[0].scored.group
    used = [index for index, usable in enumerate(groups[0].usable) if usable]
    for index, thinking in zip(
        used,
        (Thinking(num_tokens=9, num_characters=1, closed=True), Thinking(num_tokens=6, num_characters=1, closed=False)),
        strict=False,
    ):
        group.rollouts[index] = msgspec.structs.replace(group.rollouts[index], thinking=thinking)
    found = group_metrics(groups, 3, num_replaced=0)
    assert (found["thinking_tokens_mean"], found["unfinished_thinking_ratio"]) == (15 / 5, 1 / 5)


def test_each_source_of_a_mixture_has_its_own_numbers() -> None:
    values = {"name": "r", "model": {"path": "m"}, "training": {"steps": 1}}
    sources = [{"path": "a.jsonl"}, {"path": "ab.jsonl"}, {"path": "c.jsonl"}]
    mixed = parse_run_config(values | {"data": {"train": sources}})
    groups = prepared()
    for group, name in zip(groups, ("ab/0", "a/0"), strict=True):
        question = msgspec.structs.replace(group.scored.group.task.question, id=name)
        task = msgspec.structs.replace(group.scored.group.task, question=question)
        completed = msgspec.structs.replace(group.scored.group, task=task)
        object.__setattr__(group, "scored", msgspec.structs.replace(group.scored, group=completed))
    found = source_numbers(groups, mixed)
    both = group_metrics(groups, 3, num_replaced=0)
    assert sorted(found) == sorted(
        f"{name}/{s}" for name in ("reward_mean", "accuracy", "num_groups") for s in ("a", "ab")
    )
    assert found["num_groups/a"] == found["num_groups/ab"] == 1
    for index, name in enumerate(("ab", "a")):
        alone = group_metrics(groups[index : index + 1], 3, num_replaced=0)
        assert (found[f"reward_mean/{name}"], found[f"accuracy/{name}"]) == (alone["reward_mean"], alone["accuracy"])
    assert both["reward_mean"] not in (found["reward_mean/a"], found["reward_mean/ab"])
    for single in ("a.jsonl", sources[:1]):
        assert source_numbers(groups, parse_run_config(values | {"data": {"train": single}})) == {}


def test_each_part_of_the_reward_has_its_mean_over_used_rollouts() -> None:
    """The parts of a kind share one metric; those with a name of their own are in the step's record as well."""
    kinds = {"row": "row", "length": "length", "brief": "length", "format": "format", "haiku": "haiku"}
    parts = tuple(RewardPart(name=name, kind=kind, weight=1.0) for name, kind in kinds.items())
    groups = prepared()
    given = [(1.0, 0.0, 0.5, 1.0, 0.2), (0.0, 1.0, 0.5, 0.0, 0.2), (0.5, 0.5, 0.5, 0.5, 0.2), (9.0,) * 5]
    for group, rewards in zip(groups, (given, given[:2]), strict=True):
        group.scored.verdicts[:] = [
            msgspec.structs.replace(verdict, parts=dict(zip(kinds, values, strict=True)))
            for verdict, values in zip(group.scored.verdicts, rewards, strict=True)
        ]
        task = msgspec.structs.replace(group.scored.group.task, rewards=parts)
        completed = msgspec.structs.replace(group.scored.group, task=task)
        object.__setattr__(group, "scored", msgspec.structs.replace(group.scored, group=completed))
    found = part_means(groups)
    assert found == pytest.approx({"reward_row": 0.5, "reward_length": 0.5, "reward_format": 0.5, "reward_other": 0.2})
    assert group_metrics(groups, 3, num_replaced=0).items() >= found.items()
    assert found.keys() < OPTIONAL
    assert part_means(groups, by_name=True) == pytest.approx({"reward_part/brief": 0.5})
    assert part_means(prepared()) == part_means(prepared(), by_name=True) == {}


def test_every_metric_that_is_computed_is_declared_and_every_one_declared_is_computed() -> None:
    reports = [run_minibatch(PlainEngine(), random_sequences(3, 4), None, builders.run_config())]
    numbers = step_numbers(
        prepared(), 3, reports, num_replaced=0, pools={}, learning_rate=1e-6, seconds_wait=1.0, peak_bytes=3 * 2**29
    )
    assert numbers["learner_peak_memory_gib"] == 1.5
    numbers["teacher_age_steps"] = 0.0  # the leader's own
    event = StepFinished(
        run_id="r", at=1.0, step=1, metrics=numbers, histograms=step_histograms(prepared(), 3, reports)
    )
    told = with_rates(with_rates(event, seconds=2.0, seconds_checkpoint=0.0), seconds_publish=0.5)
    for computed, declared in ((told.metrics, STEP_METRICS), (told.histograms, STEP_HISTOGRAMS)):
        assert sorted(computed.keys() - declared.keys()) == [], "computed, but not in CATALOGUE"
        missing = {name for name in declared.keys() - computed.keys() if name not in OPTIONAL}
        assert sorted(missing) == [], "in CATALOGUE, but never computed"


def test_the_passes_that_fix_pi_old_count_as_training(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 14.0])
    session = TrainingSession.__new__(TrainingSession)
    session.engine, session.config, session.step = PlainEngine(), builders.run_config(name="grpo"), 0  # type: ignore[assignment]
    session.engine.keeper = None
    monkeypatch.setattr("services.learner.program.session.clock", lambda _: next(times))
    monkeypatch.setattr("services.learner.update.engine.time.perf_counter", lambda: 0.0)
    batch = random_sequences(1, 4, routes=("grpo",))
    reports = session.train(Step([batch, batch], False)).reports
    assert [(report.seconds_teacher, report.seconds_train) for report in reports] == [(0.0, 4.0), (0.0, 0.0)]


def test_ages_are_counted_in_their_buckets() -> None:
    ages = token_ages(prepared(), 3)
    assert ages == {0: 4, 3: 1, 1: 1, 2: 4}
    histogram = staleness_histogram(ages | {6: 7, 99: 2})
    assert dict(zip(histogram.edges, histogram.counts, strict=False)) == {
        **dict.fromkeys(histogram.edges[:-1], 0),
        0.0: 4,
        1.0: 1,
        2.0: 4,
        3.0: 1,
        6.0: 7,
        12.0: 2,
    }
    assert histogram.total == 1 + 8 + 3 + 42 + 198


def test_faults_do_not_lower_pass_at_k() -> None:
    """Questions whose samples are correct one time in four, with up to a quarter of them lost to faults."""
    k, dice = 8, random.Random(3)
    expected = 1 - 0.75**k
    for lost in (0.0, 0.125, 0.25):
        counts = []
        for _ in range(10_000):
            usable = [dice.random() < 0.25 for _ in range(k) if dice.random() >= lost]
            counts.append((len(usable), sum(usable)))
        found = pass_at_k([item for item in counts if item[0]], k)
        spread = 4 * (expected * (1 - expected) / (len(counts) * (1 - lost) ** k)) ** 0.5
        assert found == pytest.approx(expected, abs=spread), lost


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k([(4, 1), (4, 0), (3, 0), (1, 1)], 4) == 0.5
    assert pass_at_k([(4, 1), (4, 2)], 2) == pytest.approx(((1 - 3 / 6) + (1 - 1 / 6)) / 2)
    assert pass_at_k([(3, 1), (2, 0)], 4) == 0.5, "all lost some"
    assert pass_at_k([], 4) == 0.0


def test_an_evaluation_is_a_mean_over_questions_of_what_was_judged() -> None:
    groups = [
        make_group(0, rewards=(1.0, 0.0, 0.0, 1.0), faulty=(3,)),
        make_group(1, rewards=(0.0, 0.0)),
        make_group(2, rewards=(1.0, 1.0), faulty=(0, 1)),
    ]
    found = summarise(groups, "run", 5, run_config().evaluation.num_samples)
    assert (found.accuracy, found.pass_at_k) == pytest.approx(((1 / 3 + 0) / 2, 1 / 2))
    assert (found.num_questions, found.num_faults, found.response_tokens_mean) == (2, 3, 2)

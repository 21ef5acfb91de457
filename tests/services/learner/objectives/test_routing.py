"""Routing, demonstrations and advantages of one group."""

import dataclasses
import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.arrays import LogProbs, TokenIds
from services.contracts.errors import TurnoutError
from services.contracts.messages import VersionSpan
from services.contracts.run_config import ObjectiveSection, parse_run_config
from services.learner.groups.routed import routed, share_correct
from services.learner.objectives.edit_distance import edit_distance
from services.learner.objectives.filters import leave_out
from services.learner.objectives.routing import Assignment, GroupOutcome, route_group
from services.learner.objectives.terms.advantages import group_advantages
from tests.services.learner.conftest import make_group

GROUPS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.booleans(), st.booleans(), st.integers(0, 9)),
    min_size=1,
    max_size=8,
)
FEEDBACK = ("none", "alone", "with_solution", "fallback")


def outcome(
    rewards: list[float], faulty: tuple[int, ...] = (), feedback: tuple[int, ...] = (), lengths: list[int] | None = None
) -> GroupOutcome:
    count = len(rewards)
    return GroupOutcome(
        [reward >= 0.5 for reward in rewards],
        [index not in faulty for index in range(count)],
        [index in feedback for index in range(count)],
        lengths or [5] * count,
    )


def outcome_of(rows: list[tuple[float, bool, bool, int]]) -> GroupOutcome:
    rewards, usable, has_feedback, lengths = (list(column) for column in zip(*rows, strict=True))
    return GroupOutcome([reward >= 0.5 for reward in rewards], usable, has_feedback, lengths)


def route(group: GroupOutcome, **objective: object) -> list[Assignment]:
    return route_group(group, ObjectiveSection.model_validate(objective), "run/group")


def test_the_worked_case_of_eight_with_the_second_and_fifth_correct() -> None:
    chosen = route(outcome([0, 1, 0, 0, 1, 0, 0, 0]))
    assert [item.route for item in chosen] == ["sdpo", "grpo", "sdpo", "sdpo", "grpo", "sdpo", "sdpo", "sdpo"]
    assert {item.demonstration for item in chosen if item.route == "sdpo"} == {1}
    assert (chosen[1].demonstration, chosen[4].demonstration) == (4, 1)
    assert [item.needs_teacher for item in chosen] == [item.route == "sdpo" for item in chosen]


@pytest.mark.parametrize("name", ["srpo", "grpo", "sdpo", "advantage_mix", "rlsd"])
@pytest.mark.parametrize("rewards", [[0, 0, 0], [1, 1, 1], [0, 1, 0], [1], [0]])
def test_edge_groups(name: str, rewards: list[float]) -> None:
    chosen = route(outcome(rewards), name=name)
    num_correct = sum(rewards)
    for reward, item in zip(rewards, chosen, strict=True):
        informed = num_correct - reward >= 1
        assert item.teacher_information == informed
        expected = {
            "srpo": "sdpo" if informed and not reward else "grpo",
            "grpo": "grpo",
            "sdpo": "sdpo" if informed else "none",
            "advantage_mix": "grpo",
            "rlsd": "grpo",
        }[name]
        assert item.route == expected
        assert item.needs_teacher == (informed and (expected == "sdpo" or name in ("advantage_mix", "rlsd")))


@given(GROUPS, st.sampled_from(FEEDBACK), st.sampled_from(["first", "random", "shortest"]))
def test_the_routing_table_is_complete(
    rows: list[tuple[float, bool, bool, int]], feedback: str, demonstration: str
) -> None:
    group = outcome_of(rows)
    correct = {i for i, (reward, usable, _, _) in enumerate(rows) if usable and reward >= 0.5}
    for index, item in enumerate(route(group, feedback=feedback, demonstration=demonstration)):
        usable, has_feedback = rows[index][1], rows[index][2]
        if not usable:
            assert item == Assignment("none", False, False, False, (), False)
            continue
        siblings = correct - {index}
        shows = bool(siblings) and feedback != "alone"
        assert (item.demonstration in siblings) if shows else (item.demonstration is None)
        wants = {"none": False, "alone": True, "with_solution": True, "fallback": not siblings}[feedback]
        assert item.feedback == (wants and has_feedback)
        assert item.teacher_information == (shows or item.feedback)
        assert item.correct == (index in correct)
        assert item.route == ("sdpo" if item.teacher_information and index not in correct else "grpo")


def test_excluded_rollouts_are_not_siblings() -> None:
    chosen = route(outcome([1, 0, 0], faulty=(0,)))
    assert [item.route for item in chosen] == ["none", "grpo", "grpo"]
    assert not any(item.teacher_information for item in chosen)


def test_demonstration_choices() -> None:
    group = outcome([0, 1, 1, 1], lengths=[3, 9, 2, 2])
    assert route(group)[0].demonstration == 1
    assert route(group, demonstration="shortest")[0].demonstration == 2
    draws = {
        route_group(group, ObjectiveSection(demonstration="random"), f"7/{number}")[0].demonstration
        for number in range(50)
    }
    assert draws == {1, 2, 3}
    assert route(group, demonstration="random") == route(group, demonstration="random")


FIXED = {"teacher_path": "large", "teacher_update": "frozen"}


@pytest.mark.parametrize(
    ("name", "routes"),
    [("srpo", ["grpo", "sdpo", "sdpo"]), ("sdpo", ["sdpo", "sdpo", "sdpo"]), ("rlsd", ["grpo", "grpo", "grpo"])],
)
def test_a_teacher_that_needs_nothing_to_read_can_teach_every_rollout(name: str, routes: list[str]) -> None:
    chosen = route(outcome([1, 0, 0], feedback=(2,)), name=name, demonstration="none", **FIXED)
    assert [item.route for item in chosen] == routes
    assert all(item.teacher_information and item.demonstration is None and not item.feedback for item in chosen)
    assert [item.needs_teacher for item in chosen] == [name == "rlsd" or item.route == "sdpo" for item in chosen]
    alone = route(outcome([0, 0, 0], faulty=(1,)), name=name, demonstration="none", routing="failed_groups", **FIXED)
    assert [item.teacher_information for item in alone] == [True, False, True]


@pytest.mark.parametrize(
    ("routing", "rewards", "routes"),
    [
        ("sample", [1, 0, 0, 0], ["grpo", "sdpo", "sdpo", "sdpo"]),
        ("sample", [0, 0, 0, 0], ["sdpo", "sdpo", "sdpo", "sdpo"]),
        # The only correct one has no sibling to read, though its own feedback if there is any.
        ("group", [1, 0, 0, 0], ["sdpo", "sdpo", "sdpo", "sdpo"]),
        ("group", [1, 1, 0, 0], ["grpo", "grpo", "grpo", "grpo"]),
        ("group", [0, 0, 0, 0], ["sdpo", "sdpo", "sdpo", "sdpo"]),
        ("failed_groups", [1, 0, 0, 0], ["grpo", "grpo", "grpo", "grpo"]),
        ("failed_groups", [0, 0, 0, 0], ["sdpo", "sdpo", "sdpo", "sdpo"]),
    ],
)
def test_who_is_distilled(routing: str, rewards: list[float], routes: list[str]) -> None:
    group = outcome(rewards, feedback=(0, 1, 2, 3))
    chosen = route(group, routing=routing, feedback="with_solution")
    assert [item.route for item in chosen] == routes
    assert [item.needs_teacher for item in chosen] == [name == "sdpo" for name in routes]


def test_without_feedback_a_group_is_distilled_as_far_as_there_is_something_to_read() -> None:
    assert [item.route for item in route(outcome([1, 0, 0]), routing="group")] == ["grpo", "sdpo", "sdpo"]
    # Of four one is lost to a fault: of those left, half are correct.
    assert {item.route for item in route(outcome([1, 0, 0, 1], faulty=(1, 3)), routing="group")} == {"grpo", "none"}


def test_the_closest_correct_sibling_is_shown() -> None:
    tokens = [[1, 2, 3, 4], [9, 9], [1, 2, 3, 5, 6], [7, 2, 3, 4], [1, 2, 3, 5, 6]]
    group = dataclasses.replace(outcome([0, 1, 1, 0, 1]), tokens=tokens)
    chosen = route(group, demonstration="closest")
    assert (chosen[0].demonstration, chosen[3].demonstration) == (2, 2)  # 2 and 3 edits; the first of two alike
    assert route(group)[0].demonstration == 1


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("first", [1, 2, 4]),
        ("reference", [1, 2, 4]),
        ("shortest", [2, 4, 1]),  # the first of two alike
        ("closest", [4, 2, 1]),
        ("likeliest", [1, 4, 2]),
    ],
)
def test_several_demonstrations_are_the_best_of_their_choice(choice: str, expected: list[int]) -> None:
    group = dataclasses.replace(
        outcome([0, 1, 1, 0, 1], lengths=[3, 9, 2, 1, 2]),
        tokens=[[1, 2, 3, 4], [9, 9], [1, 2, 5, 6], [7], [1, 2, 3, 6]],
        surprise=[0.0, 0.1, 0.9, 0.0, 0.5],
    )
    for number in (1, 2, 3):
        chosen = route(group, demonstration=choice, demonstrations=number)
        assert list(chosen[0].demonstrations) == expected[:number]
        if choice != "closest":  # to which another rollout has other distances
            assert list(chosen[1].demonstrations) == [item for item in expected if item != 1][:number], "all there are"
    alike = dataclasses.replace(group, texts=["no", "yes", "yes", "no", "also"])
    once = {"yes": next(item for item in expected if item != 4), "also": 4}
    assert set(route(alike, demonstration=choice, demonstrations=2)[0].demonstrations) == set(once.values())


def test_several_random_demonstrations_begin_with_the_single_one() -> None:
    group = outcome([0, 1, 1, 1, 1])
    several = [
        route_group(group, ObjectiveSection(demonstration="random", demonstrations=3), f"{n}")[0] for n in range(40)
    ]
    single = [route_group(group, ObjectiveSection(demonstration="random"), f"{n}")[0] for n in range(40)]
    assert [item.demonstration for item in several] == [item.demonstration for item in single]
    assert all(len(set(item.demonstrations)) == 3 for item in several)
    assert {item.demonstrations[1] for item in several} == {1, 2, 3, 4}


def test_the_likeliest_sibling_is_that_of_the_recorded_probabilities() -> None:
    """By token: a long response is not less likely than a short one because it is long."""
    scored = make_group(0, rewards=(0.0, 1.0, 1.0, 1.0))
    logprobs = [[-9.0, -9.0], [-0.5, -0.1, -0.3, -0.2], [-0.3], [-0.2, -0.7, -0.1]]
    rollouts = [
        msgspec.structs.replace(
            rollout,
            token_ids=TokenIds([5] * len(values)),
            logprobs=LogProbs(values),
            weight_versions=[VersionSpan(0, 0, len(values))],
        )
        for rollout, values in zip(scored.group.rollouts, logprobs, strict=True)
    ]
    scored = msgspec.structs.replace(scored, group=msgspec.structs.replace(scored.group, rollouts=rollouts))
    means = {index: math.fsum(values) / len(values) for index, values in enumerate(logprobs) if index}
    config = parse_run_config(
        {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
        | {"objective": {"demonstration": "likeliest"}}
    )
    found = routed(scored, config).kept.assignments
    assert found[0].demonstration == max(means, key=lambda index: means[index]) == 1
    assert found[1].demonstration == 2


def test_a_wrong_hint_is_a_failed_sibling_that_says_something_else() -> None:
    group = dataclasses.replace(
        outcome([0, 1, 0, 0, 0], faulty=(3,)), texts=["a", "yes", "a", "b", "c"], demonstrates=[True] * 5
    )
    assert [item.wrong_hint for item in route(group, wrong_hint=1.0)] == [4, None, 4, None, 0]
    assert all(item.wrong_hint is None for item in route(group))
    alone = route(outcome([0, 1, 1]), wrong_hint=1.0)
    assert [(item.route, item.wrong_hint) for item in alone] == [("sdpo", None), ("grpo", None), ("grpo", None)]


TOKENS = st.lists(st.integers(0, 3), max_size=12)


@given(TOKENS, TOKENS)
def test_the_edit_distance_is_that_of_the_table(left: list[int], right: list[int]) -> None:
    row = list(range(len(right) + 1))
    for number, token in enumerate(left, start=1):
        above, row = row, [number]
        for place, other in enumerate(right):
            row.append(min(above[place + 1] + 1, row[-1] + 1, above[place] + (token != other)))
    assert edit_distance(left, right) == row[-1]


@pytest.mark.parametrize("feedback", ["none", "with_solution", "fallback"])
def test_the_rows_solution_is_read_if_no_sibling_is_correct(feedback: str) -> None:
    options = {"demonstration": "reference", "feedback": feedback, "routing": "failed_groups"}
    failed = dataclasses.replace(outcome([0, 0], feedback=(0, 1)), has_solution=True)
    for item in route(failed, **options):
        assert (item.route, item.reference, item.demonstration) == ("sdpo", True, None)
        assert item.feedback == (feedback == "with_solution")
    mixed = dataclasses.replace(outcome([0, 1, 0]), has_solution=True)
    chosen = route(mixed, demonstration="reference")
    assert [item.demonstration for item in chosen] == [1, None, 1]
    assert [item.reference for item in chosen] == [False, True, False]  # the only correct one has no sibling
    assert chosen[1].route == "grpo"
    without = dataclasses.replace(failed, has_solution=False, has_feedback=[False, False])
    assert not any(item.reference or item.needs_teacher for item in route(without, **options))


@pytest.mark.parametrize(
    ("distil", "rewards", "routes"),
    [
        ("all", [1, 0, 1], ["sdpo", "sdpo", "sdpo"]),
        ("incorrect", [1, 0, 1], ["none", "sdpo", "none"]),
        ("correct", [1, 0, 1], ["sdpo", "none", "sdpo"]),
        ("correct", [1, 0, 0], ["none", "none", "none"]),
    ],
)
def test_sdpo_on_correct_or_on_incorrect_rollouts_only(distil: str, rewards: list[float], routes: list[str]) -> None:
    """The SRPO paper's figure 1b. A single correct rollout has no sibling to read."""
    chosen = route(outcome(rewards), name="sdpo", distil=distil)
    assert [item.route for item in chosen] == routes
    assert [item.needs_teacher for item in chosen] == [name == "sdpo" for name in routes]


def test_inconsistent_groups_are_rejected() -> None:
    with pytest.raises(TurnoutError, match="differ in length"):
        route(GroupOutcome([False, True], [True], [False], [1]))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=9), st.sampled_from(["mean", "mean_std"])
)
def test_advantages_follow_the_equation(rows: list[tuple[float, bool]], kind: str) -> None:
    rewards, usable = [row[0] for row in rows], [row[1] for row in rows]
    found = group_advantages(rewards, usable, kind)  # type: ignore[arg-type]
    kept = [reward for reward, ok in rows if ok]
    assert abs(sum(found)) < 1e-6
    for (reward, ok), value in zip(rows, found, strict=True):
        if not ok or len(kept) < 2 or len(set(kept)) == 1:
            assert value == 0.0
            continue
        mean = sum(kept) / len(kept)
        spread = math.sqrt(sum((other - mean) ** 2 for other in kept) / (len(kept) - 1))
        assert value == pytest.approx((reward - mean) / (spread + 1e-6 if kind == "mean_std" else 1), abs=1e-9)


def test_rewards_outside_the_unit_interval_are_rejected() -> None:
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(TurnoutError, match="outside"):
            group_advantages([bad, 0.5], [True, True], "mean")


def test_equal_rewards_give_exactly_zero_despite_rounding() -> None:
    for reward, count in itertools.product([0.1, 0.3, 0.7], [3, 7]):
        assert group_advantages([reward] * count, [True] * count, "mean_std") == [0.0] * count


def left_out(rewards: list[float], truncated: tuple[int, ...] = (), **options: object) -> tuple[list[str], int, bool]:
    objective = ObjectiveSection.model_validate(options)
    group = outcome(rewards)
    advantages = group_advantages(rewards, group.usable, "mean")
    cut = [index in truncated for index in range(len(rewards))]
    kept = leave_out(route_group(group, objective, "s"), cut, advantages, objective)
    assert kept.uninformative == (objective.skip_uninformative_groups and not kept.teaches)
    assert all(item.route != "none" or not item.needs_teacher for item in kept.assignments)
    return [item.route for item in kept.assignments], kept.num_masked, kept.uninformative


def test_nothing_is_left_out_unless_asked() -> None:
    assert left_out([0, 0, 0], truncated=(0, 1)) == (["grpo"] * 3, 0, False)


def test_truncated_responses_are_masked_and_counted() -> None:
    found = left_out([1, 0, 0], truncated=(0, 2), mask_truncated=True)
    assert found == (["none", "sdpo", "none"], 2, False)
    assert left_out([0, 0], truncated=(0,), name="sdpo", mask_truncated=True) == (["none", "none"], 0, False)


@pytest.mark.parametrize(
    ("name", "rewards", "uninformative"),
    [
        ("srpo", [0, 0, 0], True),
        ("srpo", [1, 1, 1], True),
        ("srpo", [1, 0, 0], False),
        ("srpo", [0.2, 0.2, 0.3], False),
        ("grpo", [1, 1], True),
        ("advantage_mix", [1, 1], False),
        ("advantage_mix", [0, 0], True),
        ("rlsd", [1, 1], True),
        ("rlsd", [1, 0], False),
    ],
)
def test_groups_without_signal_are_skipped(name: str, rewards: list[float], uninformative: bool) -> None:
    routes, _, skipped = left_out(rewards, name=name, skip_uninformative_groups=True)
    assert skipped == uninformative
    assert ("none" in routes) == uninformative


def test_a_group_whose_signal_was_all_masked_is_skipped() -> None:
    rewards, options = [1, 1, 0.2], {"name": "grpo", "mask_truncated": True, "skip_uninformative_groups": True}
    assert left_out(rewards, truncated=(0, 1, 2), **options) == (["none"] * 3, 3, True)
    assert left_out(rewards, truncated=(2,), **options) == (["grpo", "grpo", "none"], 1, False)


def test_what_the_verdict_says_is_solved_decides_the_route_and_the_reward_the_advantage() -> None:
    group = make_group(0, rewards=(0.9, 0.2, 0.6))
    group.verdicts[:] = [
        msgspec.structs.replace(verdict, solved=solved)
        for verdict, solved in zip(group.verdicts, (False, True, False), strict=True)
    ]
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    found = routed(group, parse_run_config(values))
    assert [item.route for item in found.kept.assignments] == ["sdpo", "grpo", "sdpo"]
    assert found.advantages == pytest.approx([0.9 - 17 / 30, 0.2 - 17 / 30, 0.6 - 17 / 30])
    assert share_correct(group, 0.5) == 1 / 3

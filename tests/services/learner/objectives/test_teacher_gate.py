"""When a gated teacher is renewed, on sequences of rewards and lengths."""

from __future__ import annotations

import msgspec
import pytest

from services.contracts.run_config import parse_run_config
from services.learner.objectives.teacher_gate import GateState, TeacherGate
from tests.services.learner.ring import run_values

EVEN = [0.30, 0.32, 0.30, 0.32]


def renewals(gate: TeacherGate, rewards: list[float], tail: float = 100.0) -> list[int]:
    """Which of these steps renew the teacher, from 1."""
    return [step for step, reward in enumerate(rewards, 1) if gate.observe(reward, tail)]


def test_the_teacher_is_renewed_once_a_whole_window_is_better_than_the_last_that_counted() -> None:
    better = [reward + 0.2 for reward in EVEN]
    gate = TeacherGate(4)
    assert renewals(gate, EVEN + better + better) == [8], "the first window is the measure, the third no gain"
    assert gate.state.age == 4
    assert renewals(gate, [reward + 0.4 for reward in EVEN]) == [3], "the window slides while it waits"


def test_a_gain_within_the_noise_does_not_count() -> None:
    noisy = [0.1, 0.5, 0.2, 0.6]
    assert renewals(TeacherGate(4), noisy + [reward + 0.2 for reward in noisy]) == []
    assert renewals(TeacherGate(4), noisy + [reward + 0.5 for reward in noisy]) == [8]


@pytest.mark.parametrize(("tail", "renewed"), [(125.0, [4]), (126.0, [])])
def test_responses_may_grow_by_a_quarter_from_copy_to_copy(tail: float, renewed: list[int]) -> None:
    gate = TeacherGate(4)
    renewals(gate, EVEN)
    assert renewals(gate, [1.0] * 4, tail) == renewed


def test_it_decides_alike_after_its_state_has_been_stored() -> None:
    rewards = [0.1, 0.2, 0.1, 0.4, 0.5, 0.4, 0.6, 0.9, 0.8, 0.9]
    whole, gate, found = TeacherGate(2), TeacherGate(2), []
    for step, reward in enumerate(rewards, 1):
        gate = TeacherGate(2, msgspec.json.decode(msgspec.json.encode(gate.state), type=GateState))
        found += [step] * gate.observe(reward, 100.0)
    assert found == renewals(whole, rewards) != []


def test_only_a_gated_teacher_has_a_gate() -> None:
    assert TeacherGate.for_run(parse_run_config(run_values()), None) is None
    assert TeacherGate.for_run(parse_run_config(run_values(objective={"teacher_update": "gated"})), None) is not None

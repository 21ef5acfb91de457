"""What an engine may do for others alongside a training run."""

from __future__ import annotations

import pytest

from services.rollout.allowance import PART, REOPENS_AT_SECONDS, SAVED_SECONDS, Allowance


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def worked(allowance: Allowance, clock: Clock, seconds: float, at_once: int = 1) -> float:
    """Seconds of work out of `seconds` if it begins whenever it may, in pieces of 0.1 s with `at_once` at a time."""
    total = 0.0
    for _ in range(round(seconds / 0.1)):
        if allowance.is_open:
            pieces = [allowance.working() for _ in range(at_once)]
            for piece in pieces:
                piece.__enter__()
            clock.now += 0.1
            for piece in pieces:
                piece.__exit__(None, None, None)
            total += 0.1
        else:
            clock.now += 0.1
    return total


@pytest.mark.parametrize("at_once", [1, 4])
def test_work_next_to_a_run_has_its_part_of_the_time(at_once: int) -> None:
    clock = Clock()
    allowance = Allowance(clock)
    assert worked(allowance, clock, 100.0, at_once) == pytest.approx(100.0), "nothing trains"
    allowance.is_limited = True
    assert worked(allowance, clock, 1000.0, at_once) == pytest.approx(1000.0 * PART + SAVED_SECONDS, abs=1.0)
    allowance.is_limited = False
    assert worked(allowance, clock, 100.0, at_once) == pytest.approx(100.0)


def test_a_long_answer_is_waited_for_afterwards_and_savings_are_bounded() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    allowance.is_limited = True
    assert allowance.is_open
    clock.now += 3600.0
    with allowance.working():
        clock.now += SAVED_SECONDS + 10.0
        assert not allowance.is_open, "others wait meanwhile"
    owed = 10.0 - (SAVED_SECONDS + 10.0) * PART
    clock.now += (owed + REOPENS_AT_SECONDS) / PART - 0.1
    assert not allowance.is_open
    clock.now += 0.2
    assert allowance.is_open

"""Figures of the comparison with TRL at equal accuracy."""

import pytest

from benchmarks._runs import Curve
from benchmarks.trl_accuracy import OURS, THEIRS, mean_accuracy, ratio


def curve(seconds: float, *accuracy: float) -> Curve:
    """Ten steps between evaluations, the first before training."""
    steps = 10 * (len(accuracy) - 1)
    return Curve(1, {10 * i: value for i, value in enumerate(accuracy)}, [{"seconds": seconds}] * steps, ahead=0)


def test_a_ratio_is_of_the_seconds_of_the_quickest_trainer_of_trl() -> None:
    ours = [curve(1.0, 0.2, 0.6, 0.7), curve(1.0, 0.2, 0.2, 1.0)]
    curves = {THEIRS[0]: [curve(2.0, 0.2, 0.4, 0.8)], THEIRS[1]: [curve(2.5, 0.2, 0.2, 0.6)], OURS[0]: ours}
    assert ratio(curves, OURS[0], 0.6) == f"{30 / ((10 + 15) / 2):.2f}"
    assert ratio(curves, THEIRS[0], 0.6) == "1.00"


def test_there_is_no_ratio_where_a_run_never_came_so_far() -> None:
    falls_short, arrives = curve(1.0, 0.2, 0.5), curve(1.0, 0.2, 0.9)
    curves = {THEIRS[0]: [arrives], THEIRS[1]: [falls_short], OURS[0]: [arrives, falls_short], OURS[1]: [arrives]}
    assert ratio(curves, OURS[0], 0.6) == ""
    assert ratio(curves, OURS[1], 0.6) == "1.00"


def test_the_evaluation_before_training_does_not_choose_a_learning_rate() -> None:
    assert mean_accuracy(curve(1.0, 0.0, 0.5, 0.7)) == pytest.approx(0.6)

"""When a `gated` self-teacher becomes a copy of the policy: not by the clock, but once the policy has proved better.

    window      the last `teacher_every_steps` training steps, none of which belongs to an earlier window that counted
    renewed if  reward(window) - reward(proof) > 2 sqrt(se(window)^2 + se(proof)^2)
                and tail(window) <= LENGTH_GROWTH * tail(proof)

The proof is the window that the last copy was made for, at first the run's first window; se is the standard error of a
window's mean reward, and the tail is the mean over its steps of the 95th percentile of response lengths. After arXiv
2606.03532, which found that a teacher must rest between copies, and that a copy by the clock may take over a policy
that is drifting, into long responses above all. The form of the two conditions is ours.
"""

from __future__ import annotations

from statistics import fmean, variance
from typing import Final

import msgspec

from services.contracts.run_config import RunConfig

LENGTH_GROWTH: Final = 1.25
"""Responses may grow by this factor from one copy to the next."""


class Window(msgspec.Struct, frozen=True):
    """Numbers of consecutive training steps, one per step."""

    rewards: list[float] = []
    """Mean reward of the step's rollouts."""
    tails: list[float] = []
    """95th percentile of their response lengths, in tokens."""


class GateState(msgspec.Struct, frozen=True):
    """What a checkpoint keeps of a gate."""

    window: Window
    """The steps since the last copy, at most `teacher_every_steps`."""
    proof: Window | None
    age: int
    """Training steps since the last copy."""


class TeacherGate:
    """Decides, step by step, whether the teacher is renewed. A function of the groups in feeding order alone, so a
    replay decides alike."""

    def __init__(self, num_steps: int, state: GateState | None = None) -> None:
        """`num_steps`: length of a window in training steps."""
        self._num_steps = num_steps
        self.state = state or GateState(Window(), None, 0)

    @classmethod
    def for_run(cls, config: RunConfig, state: GateState | None) -> TeacherGate | None:
        """The run's gate, continued from `state`; None if its teacher has none."""
        objective = config.objective
        return cls(objective.teacher_every_steps, state) if objective.teacher_update == "gated" else None

    def observe(self, reward: float, tail: float) -> bool:
        """Take in the groups that a step is about to train on. Whether the policy that it starts from becomes the
        teacher first."""
        old = self.state
        window = Window(
            [*old.window.rewards, reward][-self._num_steps :], [*old.window.tails, tail][-self._num_steps :]
        )
        self.state = GateState(window, old.proof, old.age + 1)
        if len(window.rewards) < self._num_steps:
            return False
        if old.proof is None:
            self.state = GateState(Window(), window, old.age + 1)
            return False
        if not _is_better(window, old.proof):
            return False
        self.state = GateState(Window(), window, 0)
        return True


def _is_better(window: Window, proof: Window) -> bool:
    gain = fmean(window.rewards) - fmean(proof.rewards)
    uncertain = (_squared_error(window.rewards) + _squared_error(proof.rewards)) ** 0.5
    return gain > 2 * uncertain and fmean(window.tails) <= LENGTH_GROWTH * fmean(proof.tails)


def _squared_error(values: list[float]) -> float:
    """Square of the standard error of the mean; 0 for a single value."""
    return variance(values) / len(values) if len(values) > 1 else 0.0

"""Everything about one run that reports, comparisons and the terminal show, gathered over REST."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from services.contracts.data import main_split
from services.contracts.records import Checkpoint, Evaluation, Run, Step
from turnout.client.client import Client


class RunData(msgspec.Struct, frozen=True, kw_only=True):
    """One run with its history. Can be written to and read from JSON."""

    run: Run
    steps: list[Step] = []
    evaluations: list[Evaluation] = []
    checkpoints: list[Checkpoint] = []

    def series(self, name: str, only_if: str = "") -> tuple[list[int], list[float]]:
        """Steps and values of one metric, for the steps that report it (and in which the metric `only_if` is not 0)."""
        pairs = [
            (step.step, step.metrics[name])
            for step in self.steps
            if name in step.metrics and (not only_if or step.metrics.get(only_if))
        ]
        return [step for step, _ in pairs], [value for _, value in pairs]

    @property
    def main_evaluations(self) -> list[Evaluation]:
        """Those of the run's first validation set."""
        split = main_split(self.run.config)
        return [item for item in self.evaluations if item.split == split]

    @property
    def first_evaluation(self) -> Evaluation | None:
        """The evaluation before training; None if there was none."""
        return next((item for item in self.main_evaluations if item.step == 0), None)

    @property
    def last_evaluation(self) -> Evaluation | None:
        """The newest evaluation after some training."""
        return max((item for item in self.main_evaluations if item.step > 0), key=lambda item: item.step, default=None)

    @property
    def best_evaluation(self) -> Evaluation | None:
        return max(
            (item for item in self.main_evaluations if item.step > 0), key=lambda item: item.accuracy, default=None
        )


def collect(client: Client, run_id: str) -> RunData:
    """Fetch one run. Raises `TurnoutError`."""
    return RunData(
        run=client.run(run_id),
        steps=list(client.steps(run_id)),
        evaluations=sorted(client.evaluations(run_id), key=lambda item: item.step),
        checkpoints=client.checkpoints(run_id),
    )


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None for no values."""
    return sum(values) / len(values) if values else None

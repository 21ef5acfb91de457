"""What an experiment does next, as pure functions of its file and its runs so far: a restart changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from services.contracts.experiments.experiment import Cell, ExperimentConfig, final_cells, tuning_cells
from services.contracts.states import TERMINAL_STATES, RunState


@dataclass(frozen=True, slots=True)
class RunFact:
    """How the run of one cell is doing."""

    state: RunState
    score: float | None = None
    """Mean accuracy of the last evaluations; None before the run has succeeded."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it. A stopped run has not ended: it can be resumed."""
        return self.state in ("succeeded", "failed")


def choose(experiment: ExperimentConfig, facts: Mapping[str, RunFact]) -> dict[str, int] | None:
    """The grid's best point for each method, or None while tuning runs are missing.

    A point's value is the mean score over the tuning seeds; a failed run scores 0. Of equal points the first one wins.

    Raises:
        NothingToChooseError: every tuning run of a method failed.
    """
    values = tuning_scores(experiment, facts)
    chosen: dict[str, int] = {}
    for method, points in values.items():
        scores: list[float] = []
        for point in points:
            ended = [score for score in point if score is not None]
            if len(ended) < len(point):
                return None
            scores.append(fmean(ended))
        if experiment.tuning is not None and _all_failed(experiment, method, facts):
            raise NothingToChooseError(method)
        chosen[method] = scores.index(max(scores))
    return chosen


class NothingToChooseError(Exception):
    """Every tuning run of a method failed."""


def tuning_scores(experiment: ExperimentConfig, facts: Mapping[str, RunFact]) -> dict[str, list[list[float | None]]]:
    """Scores by method, point and seed; None for a run that has not ended. Without tuning one point that scores 0."""
    if experiment.tuning is None:
        return {method: [[0.0]] for method in experiment.methods}
    seeds = experiment.tuning.seeds
    return {
        method: [
            [_score(facts.get(Cell.of("tuning", method, point, seed).key)) for seed in seeds]
            for point in range(len(experiment.points(method)))
        ]
        for method in experiment.methods
    }


def _score(fact: RunFact | None) -> float | None:
    if fact is None or not fact.has_ended:
        return None
    return (fact.score or 0.0) if fact.state == "succeeded" else 0.0


def _all_failed(experiment: ExperimentConfig, method: str, facts: Mapping[str, RunFact]) -> bool:
    cells = [cell for cell in tuning_cells(experiment) if cell.method == method]
    return all(facts[cell.key].state == "failed" for cell in cells)


def cells_of(experiment: ExperimentConfig, chosen: Mapping[str, int] | None) -> list[Cell]:
    """Every run that is known to be needed: the final ones once settings are chosen."""
    return [*tuning_cells(experiment), *(final_cells(experiment, chosen) if chosen is not None else ())]


def next_cells(cells: Sequence[Cell], facts: Mapping[str, RunFact], room: int) -> list[Cell]:
    """Runs to start now, so that at most `room` are unfinished."""
    unfinished = sum(fact.state not in TERMINAL_STATES for fact in facts.values())
    missing = [cell for cell in cells if cell.key not in facts]
    return missing[: max(0, room - unfinished)]


def is_complete(cells: Sequence[Cell], facts: Mapping[str, RunFact]) -> bool:
    """Whether every run has ended."""
    return all(cell.key in facts and facts[cell.key].has_ended for cell in cells)

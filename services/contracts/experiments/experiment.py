"""An experiment file: methods compared over seeds, with settings tuned per method on other seeds and questions.

The file says everything before the first run starts: what is tuned and how the winner is chosen, the final seeds, the
budgets, and the claims that the results are held against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from services.contracts.errors import ConfigurationError
from services.contracts.faults import Conflicts, field_names, refused, sentence_of
from services.contracts.model import Integer, Positive, Section
from services.contracts.run_config import RunConfig, merge, parse_run_config
from services.contracts.step_metrics import STEP_METRICS
from services.contracts.values import check_values

MAX_RUNS = 1000
EVALUATED = ("accuracy", "pass_at_k")
"""Metrics of evaluations; all others are metrics of training steps."""
Name = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seeds = Annotated[tuple[Integer, ...], Field(min_length=1, max_length=100)]
Grid = Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1, max_length=20)]], Field(max_length=5)]
Phase = Literal["tuning", "final"]


class TuningSection(Section):
    """Runs that choose each method's settings. They share neither seeds nor questions with the final runs."""

    seeds: Seeds
    """Seeds of the tuning runs."""
    grid: Grid
    """Fields of a run file, in dots, with the values to try: `optimizer.learning_rate: [1.0e-4, 2.0e-4]`."""
    grid_of: dict[Name, Grid] = {}
    """Grids of single methods, instead of `grid`."""
    changes: dict[str, Any] = {}
    """Part of a run file, laid over every tuning run: the questions to choose by, fewer steps."""


class FinalSection(Section):
    """Runs that are reported."""

    seeds: Seeds
    """Seeds of the final runs, the same for each method, so that differences are paired."""
    changes: dict[str, Any] = {}
    """Part of a run file, laid over every final run: the test questions."""


class BudgetSection(Section):
    """Columns of the results table: the best evaluation within each budget."""

    steps: tuple[Positive, ...] = ()
    """Training steps."""
    seconds: tuple[Annotated[float, Field(gt=0, le=1e9)], ...] = ()
    """Seconds of training, without evaluations."""


class Quantity(Section):
    """One number per final seed: a metric of a method at some point of its runs."""

    method: Name
    metric: str = "accuracy"
    """`accuracy` or `pass_at_k` of evaluations, or a metric of training steps (docs/metrics.md)."""
    at: Literal["before", "start", "end", "best"] | Positive | tuple[Positive, Positive] = "end"
    """`end`: mean of the last evaluations, or of the last fifth of the steps. `before`: the evaluation of the untrained
    model. `start`: the first after some training, or the first fifth of the steps. `best`: the best evaluation.
    A number: the evaluation after that step, or the steps up to it. Two numbers: all evaluations or steps from one to
    the other, averaged."""

    @field_validator("at", mode="wrap")
    @classmethod
    def part_of_a_run(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        """One sentence in place of one for every form that the value could have."""
        try:
            return check(value)
        except ValidationError as error:
            raise ValueError("write before, start, end, best, a step, or two steps such as [50, 100]") from error


class ClaimSection(Section):
    """A statement that one quantity is higher than another, decided by paired differences over the final seeds."""

    claim: Annotated[str, Field(min_length=1, max_length=200)]
    """The statement, as the report prints it."""
    higher: Quantity
    lower: Quantity


class ExperimentConfig(Section):
    """A whole experiment."""

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
    """A name for people; the runs' names begin with it."""
    description: Annotated[str, Field(max_length=2000)] = ""
    """What the experiment asks; printed at the head of the report."""
    run: dict[str, Any]
    """Part of a run file that all runs share."""
    methods: Annotated[dict[Name, dict[str, Any]], Field(min_length=1, max_length=50)]
    """Methods by name: parts of a run file, laid over `run`."""
    baseline: Name | None = None
    """The method that all others are compared with, seed by seed; null: the first one."""
    tuning: TuningSection | None = None
    """null: the methods' settings are taken as they are."""
    final: FinalSection
    budgets: BudgetSection = BudgetSection()
    last_evaluations: Annotated[int, Field(ge=1, le=100)] = 3
    """A run's score is its mean accuracy over this many last evaluations."""
    claims: Annotated[tuple[ClaimSection, ...], Field(max_length=100)] = ()

    @model_validator(mode="after")
    def cross_check(self) -> Self:
        """Refuse what could not give a fair comparison, all at once."""
        if faults := list(self._conflicts()):
            raise Conflicts(faults)
        return self

    def _conflicts(self) -> Iterator[str]:
        for place, name in self._method_names():
            if name not in self.methods:
                yield f"{place} is {name}, which is not one of methods; choose one of {', '.join(self.methods)}"
        for index, claim in enumerate(self.claims):
            for side, quantity in (("higher", claim.higher), ("lower", claim.lower)):
                if quantity.metric not in EVALUATED and quantity.metric not in STEP_METRICS:
                    yield (
                        f"claims.{index}.{side}.metric is {quantity.metric}, which is not a metric; "
                        "docs/metrics.md lists them"
                    )
                elif quantity.at == "before" and quantity.metric not in EVALUATED:
                    yield (
                        f"claims.{index}.{side}.at is before, but {quantity.metric} is a metric of training steps; "
                        "use start, or one of accuracy and pass_at_k"
                    )
        if self.tuning is None:
            return
        if shared := sorted(set(self.tuning.seeds) & set(self.final.seeds)):
            yield f"tuning.seeds and final.seeds share {shared[0]}; use other seeds to choose settings than to report"

    def _method_names(self) -> Iterator[tuple[str, str]]:
        if self.baseline is not None:
            yield "baseline", self.baseline
        for name in self.tuning.grid_of if self.tuning else ():
            yield "tuning.grid_of", name
        for index, claim in enumerate(self.claims):
            yield f"claims.{index}.higher.method", claim.higher.method
            yield f"claims.{index}.lower.method", claim.lower.method

    @property
    def compared_with(self) -> str:
        """Name of the baseline, with the default filled in."""
        return self.baseline or next(iter(self.methods))

    def points(self, method: str) -> list[dict[str, Any]]:
        """The grid's points of a method, in order: values by field in dots. One empty point without tuning."""
        if self.tuning is None:
            return [{}]
        grid = self.tuning.grid_of.get(method, self.tuning.grid)
        return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One run of an experiment."""

    phase: Phase
    method: str
    point: int
    """Index of the grid's point."""
    seed: int
    key: str = field(compare=False, default="")
    """Names the cell within its experiment."""

    @staticmethod
    def of(phase: Phase, method: str, point: int, seed: int) -> Cell:
        return Cell(phase, method, point, seed, f"{phase}/{method}/{point}/{seed}")


def tuning_cells(experiment: ExperimentConfig) -> list[Cell]:
    """All tuning runs. Seeds come first and methods alternate, so that a slow hour of the machine hits all alike."""
    if experiment.tuning is None:
        return []
    longest = max(len(experiment.points(method)) for method in experiment.methods)
    return [
        Cell.of("tuning", method, point, seed)
        for seed in experiment.tuning.seeds
        for point in range(longest)
        for method in experiment.methods
        if point < len(experiment.points(method))
    ]


def final_cells(experiment: ExperimentConfig, chosen: Mapping[str, int]) -> list[Cell]:
    """All final runs, with the point that tuning chose for each method."""
    return [
        Cell.of("final", method, chosen[method], seed)
        for seed in experiment.final.seeds
        for method in experiment.methods
    ]


def phases(experiment: ExperimentConfig) -> list[Phase]:
    """The phases that have runs."""
    return ["final"] if experiment.tuning is None else ["tuning", "final"]


def num_runs(experiment: ExperimentConfig) -> int:
    """Runs of both phases."""
    return len(tuning_cells(experiment)) + len(experiment.methods) * len(experiment.final.seeds)


def run_values(experiment: ExperimentConfig, cell: Cell) -> dict[str, Any]:
    """The run file of one cell, not checked yet."""
    section = experiment.tuning if cell.phase == "tuning" else experiment.final
    values = merge(experiment.run, experiment.methods[cell.method])
    values = merge(values, section.changes if section else {})
    for place, value in experiment.points(cell.method)[cell.point].items():
        for key in reversed(place.split(".")):
            value = {key: value}
        values = merge(values, value)
    point = f" point {cell.point}" if cell.phase == "tuning" else ""
    name = f"{experiment.name} {cell.method}{point} seed {cell.seed}"
    return merge(values, {"name": name, "training": {"seed": cell.seed}})


def run_config(experiment: ExperimentConfig, cell: Cell) -> RunConfig:
    """The checked configuration of one cell.

    Raises:
        ConfigurationError: names the method, and each wrong field.
    """
    try:
        return parse_run_config(run_values(experiment, cell))
    except ConfigurationError as error:
        raise ConfigurationError(
            f"methods.{cell.method} ({cell.phase}, seed {cell.seed}) does not give a valid run. {error.message}",
            remedy=error.remedy,
            field=f"methods.{cell.method}",
        ) from error


def parse_experiment(values: Any) -> ExperimentConfig:
    """The checked experiment of a parsed YAML file or JSON body, with every run of it checked.

    Raises:
        ConfigurationError: names each wrong field, the value found and the remedy.
    """
    check_values(values)
    try:
        experiment = ExperimentConfig.model_validate(values)
    except ValidationError as error:
        raise refused(error, "experiment", "experiments", sentence) from error
    check_runs(experiment)
    return experiment


def stored_experiment(values: Any) -> ExperimentConfig:
    """The experiment of a stored file, which an earlier version may have accepted by other rules. Its runs are not
    checked.

    Raises:
        ConfigurationError: this version does not accept it; names each wrong field.
    """
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        found = refused(error, "experiment, which an earlier version accepted,", "experiments", sentence)
        found.remedy = (
            "Its runs are still in the list of runs. To repeat it, start an experiment with a corrected file."
        )
        raise found from error


def sentence(item: Any) -> str:
    """What one of pydantic's errors says of an experiment."""
    return sentence_of(item, ".".join(map(str, item["loc"])), field_names(ExperimentConfig))


def check_runs(experiment: ExperimentConfig) -> None:
    """Check the configuration of every run, and that the comparison is fair.

    Raises:
        ConfigurationError: names the method or field.
    """
    count = num_runs(experiment)
    if count > MAX_RUNS:
        raise ConfigurationError(
            f"The experiment has {count} runs, more than {MAX_RUNS}.", remedy="Use fewer seeds, values or methods."
        )
    for method in experiment.methods:
        _check_method(experiment, method)


def _check_method(experiment: ExperimentConfig, method: str) -> None:
    for point in range(len(experiment.points(method))):
        final = run_config(experiment, Cell.of("final", method, point, experiment.final.seeds[0]))
        _check_is_evaluated(method, final)
        _check_budgets(experiment, method, final)
        if experiment.tuning is None:
            continue
        tuning = run_config(experiment, Cell.of("tuning", method, point, experiment.tuning.seeds[0]))
        _check_is_evaluated(method, tuning)
        if shared := _questions(tuning) & _questions(final):
            raise ConfigurationError(
                f"methods.{method} is tuned on the questions that are reported ({min(shared)[0]}).",
                remedy="Set data.validation in tuning.changes to other questions than in final.changes.",
                field="tuning.changes",
            )


def _questions(config: RunConfig) -> set[tuple[str, str, str, str]]:
    """What tells the validation sets of a run from those of another, the path first."""
    return {
        (item.path, str(item.configuration), str(item.split), str(sorted(item.where.items())))
        for item in config.data.validation_sets()
    }


def _check_is_evaluated(method: str, config: RunConfig) -> None:
    if config.data.validation is None or not config.evaluation.after_training:
        raise ConfigurationError(
            f"methods.{method} is not evaluated after training, so there is nothing to compare.",
            remedy="Set data.validation in run, tuning.changes or final.changes; leave evaluation.after_training on.",
            field=f"methods.{method}",
        )


def _check_budgets(experiment: ExperimentConfig, method: str, config: RunConfig) -> None:
    if any(steps > config.training.steps for steps in experiment.budgets.steps):
        raise ConfigurationError(
            f"budgets.steps has {max(experiment.budgets.steps)}, but methods.{method} trains for "
            f"{config.training.steps} steps.",
            remedy="Lower the budget or raise training.steps.",
            field="budgets.steps",
        )

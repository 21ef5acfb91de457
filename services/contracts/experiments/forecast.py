"""What an experiment's runs need on a number of GPUs of one kind, by formula: memory, hours and disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.contracts import pace, planner, sizing
from services.contracts.experiments.experiment import Cell, ExperimentConfig, Phase, phases, run_config
from services.contracts.planner import Plan
from services.contracts.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class Range:
    """The same quantity under `pace.FAST` and `pace.SLOW`."""

    fast: float
    slow: float

    def __add__(self, other: Range) -> Range:
        return Range(self.fast + other.fast, self.slow + other.slow)

    def __mul__(self, number: float) -> Range:
        return Range(self.fast * number, self.slow * number)


@dataclass(frozen=True, slots=True)
class Forecast:
    """The runs of one method in one phase."""

    phase: Phase
    method: str
    plan: Plan
    """Of the settings that fit; `plan.changes` are those that the file lacks."""
    step_seconds: Range
    evaluation_seconds: Range | None
    """One evaluation; None if the number of questions is not known."""
    run_hours: Range
    """One run, with evaluations if they are known."""
    num_runs: int
    disk: float
    """Bytes that all runs keep after they have ended."""


def forecast(
    experiment: ExperimentConfig,
    gpu: pace.Gpu,
    count: int,
    response_tokens: int | None,
    num_questions: Mapping[Phase, int | None],
) -> list[Forecast]:
    """Tuning runs first, methods in the file's order.

    Args:
        count: GPUs of the machine.
        response_tokens: mean length of the responses; None: all have full length.
        num_questions: validation questions by phase; None: not known.

    Raises:
        ConfigurationError: a method's runs do not fit; names it and the field.
    """
    gpus = planner.Gpus(count, gpu.gib * sizing.GIB)
    found = []
    for phase in phases(experiment):
        for method in experiment.methods:
            config = run_config(experiment, Cell.of(phase, method, 0, 0))
            plan = planner.plan(config, gpus, response_tokens)
            section = experiment.final if phase == "final" or experiment.tuning is None else experiment.tuning
            num_points = 1 if phase == "final" else len(experiment.points(method))
            num_runs = len(section.seeds) * num_points
            found.append(_forecast(phase, method, plan, gpu, response_tokens, num_questions[phase], num_runs))
    return found


def _forecast(
    phase: Phase,
    method: str,
    plan: Plan,
    gpu: pace.Gpu,
    response_tokens: int | None,
    num_questions: int | None,
    num_runs: int,
) -> Forecast:
    config = plan.config
    step = _range(plan, gpu, response_tokens)
    evaluation = None
    if num_questions is not None:
        responses = num_questions * config.evaluation.num_samples
        fast, slow = (
            pace.sampling_seconds(plan, gpu, assumed, responses, response_tokens) for assumed in (pace.FAST, pace.SLOW)
        )
        evaluation = Range(fast, slow)
    seconds = step * config.training.steps
    if evaluation is not None:
        seconds += evaluation * num_evaluations(config)
    checkpoints = config.checkpoint.keep_last + config.checkpoint.keep_best
    kept = checkpoints * sizing.checkpoint_bytes(config, plan.shape) + sizing.published_bytes(config, plan.shape)
    return Forecast(phase, method, plan, step, evaluation, seconds * (1 / 3600), num_runs, num_runs * kept)


def _range(plan: Plan, gpu: pace.Gpu, response_tokens: int | None) -> Range:
    staleness = plan.config.training.max_staleness
    fast, slow = (found.step(staleness) or 0.0 for found in pace.times(plan, gpu, response_tokens))
    return Range(fast, slow)


def num_evaluations(config: RunConfig) -> int:
    """Evaluations of one run: before, during and after training."""
    steps, section = config.training.steps, config.evaluation
    during = 0 if section.every_steps is None else (steps - 1) // section.every_steps
    return section.before_training + during + section.after_training

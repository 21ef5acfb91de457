"""Wall-clock time to equal accuracy against TRL, on the embedded benchmark: whole training loops that learn.

Every trainer gets the learning rate that is best for it on the validation questions with a seed of its own; then it is
run with other seeds and asked the test questions. TRL's trainers and Turnout's deployment take turns by seed. About
half an hour; `--rates 4e-4 --seeds 1 --steps 20` is a short form.
"""

from __future__ import annotations

import argparse
import math
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from benchmarks._runs import Curve, band, play, spread, table
from benchmarks._trl import ROOT, TRL, say, trainer, trl_python
from benchmarks._trl_turns import (
    GROUP_SIZE,
    SMALL,
    Setting,
    Task,
    all_settings,
    answer,
    fastest,
    trl_order,
)
from tools.deployment import deployment
from turnout import Client

PLOT = ROOT / "docs" / "trl-accuracy.png"
TARGETS = (0.6, 0.8, 0.9)
EVERY_STEPS = 10
NUM_SAMPLES = 8
MAX_QUESTIONS = 64
WARMUP_STEPS = 10
TUNING_SEED = 101
VALIDATION = SMALL.train.parent / "validation.jsonl"
TEST = SMALL.train.parent / "test.jsonl"


@dataclass(frozen=True, slots=True)
class Learner:
    """A trainer with an objective."""

    program: str
    objective: str

    def __str__(self) -> str:
        return f"{self.program} {self.objective.upper()}"


THEIRS = (Learner("TRL", "grpo"), Learner("TRL", "sdpo"))
OURS = (Learner("Turnout", "grpo"), Learner("Turnout", "sdpo"), Learner("Turnout", "srpo"))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One training run."""

    learner: Learner
    rate: float
    seed: int
    steps: int
    questions: Path
    """For the evaluations."""


def main() -> None:
    """Tune, measure and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4, 4e-4, 8e-4], help="learning rates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=8, help="in a step")
    parser.add_argument("--max-staleness", type=int, default=1)
    parser.add_argument("--environment", type=Path, default=Path(".venv-trl"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that every context is left
    python, task = trl_python(options.environment), replace(SMALL, prompts=options.prompts, warmup_steps=WARMUP_STEPS)
    best = {each.objective: fastest(python, each.objective, task, all_settings(task), 4, 3)[0] for each in THEIRS}

    def play_all(attempts: Sequence[Attempt]) -> dict[Attempt, Curve]:
        theirs = [each for each in attempts if each.learner in THEIRS]
        found = {each: their_curve(python, task, best[each.learner.objective], each) for each in theirs}
        with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder, deployment(Path(folder)) as client:
            ours = [each for each in attempts if each.learner in OURS]
            return found | {each: our_curve(client, task, options.max_staleness, each) for each in ours}

    learners = THEIRS + OURS
    tried: dict[Learner, dict[float, float]] = {learner: {} for learner in learners}
    tuning = [
        Attempt(learner, rate, TUNING_SEED, options.steps, VALIDATION)
        for learner, rate in product(learners, options.rates)
    ]
    for attempt, curve in play_all(tuning).items():
        tried[attempt.learner][attempt.rate] = mean_accuracy(curve)
    rates = {learner: max(scores, key=lambda rate: scores[rate]) for learner, scores in tried.items()}
    curves: dict[Learner, list[Curve]] = {learner: [] for learner in learners}
    for seed in options.seeds:
        final = [Attempt(learner, rates[learner], seed, options.steps, TEST) for learner in learners]
        for attempt, curve in play_all(final).items():
            curves[attempt.learner].append(curve)
    show(curves, tried, best, options)
    plot(curves)


def mean_accuracy(curve: Curve) -> float:
    """Over the evaluations after the start: high for a learner that is quick and stays up."""
    return statistics.fmean(value for step, value in curve.accuracy.items() if step)


def their_curve(python: Path, task: Task, setting: Setting, attempt: Attempt) -> Curve:
    """TRL's trainer learns, in a process of its own."""
    evaluation = {
        "every_steps": EVERY_STEPS,
        "held_out": str(attempt.questions),
        "max_questions": MAX_QUESTIONS,
        "num_samples": NUM_SAMPLES,
    }
    task = replace(task, learning_rate=attempt.rate)
    order = trl_order(attempt.learner.objective, task, setting, attempt.steps, attempt.seed, **evaluation)
    with trainer(python, "_trl_loop_side") as ask:
        found = answer(ask, order)
    accuracy = {int(step): value for step, value in found["accuracy"].items()}
    curve = Curve(attempt.seed, accuracy, [{"seconds": seconds} for seconds in found["seconds"]], ahead=0)
    change = f"{curve.accuracy[0]:.3f} -> {curve.accuracy[max(curve.accuracy)]:.3f}"
    name = f"{attempt.learner} at {attempt.rate:g}, seed {attempt.seed}"
    say(f"  {name}: accuracy {change}, {curve.seconds:.0f} s of training")
    return curve


def our_curve(client: Client, task: Task, max_staleness: int, attempt: Attempt) -> Curve:
    """A run on the deployment."""
    return play(
        client,
        f"{attempt.learner} at {attempt.rate:g}",
        steps=attempt.steps,
        seed=attempt.seed,
        evaluations=attempt.steps // EVERY_STEPS,
        objective={"name": attempt.learner.objective},
        data={"validation": str(attempt.questions)},
        optimizer={"learning_rate": attempt.rate, "warmup_steps": task.warmup_steps},
        training={"prompts_per_step": task.prompts, "max_staleness": max_staleness, "zero_stage": 0},
        evaluation={
            "num_samples": NUM_SAMPLES,
            "max_questions": MAX_QUESTIONS,
            "temperature": task.temperature,  # TRL's process samples as in training, too
            "top_p": 1.0,
        },
        checkpoint={"every_steps": 1000, "keep_last": 1},
    )


def show(
    curves: dict[Learner, list[Curve]],
    tried: dict[Learner, dict[float, float]],
    best: dict[str, Setting],
    options: argparse.Namespace,
) -> None:
    """The section."""
    print(f"## Time to equal accuracy against TRL {TRL}\n")
    print(
        f"The embedded benchmark, {options.prompts} prompts a step with {GROUP_SIZE} rollouts each, {options.steps} "
        f"steps, float32, Turnout at `max_staleness` {options.max_staleness}; TRL generates with transformers, in the "
        "fastest of the settings tried. The learning rate of each is the one with the best mean accuracy over the "
        f"evaluations of a run on validation questions (seed {TUNING_SEED}). Accuracy is avg@{NUM_SAMPLES} on "
        f"{MAX_QUESTIONS} test questions at temperature 1, every {EVERY_STEPS} steps, each program with its own "
        "engine; between evaluations by straight lines. Seconds are of training, sampling included, without "
        f"evaluations and start-up. Means ± standard deviations over {len(options.seeds)} seeds; *n of m* where only "
        "n runs came so far. Ratios: the mean seconds of TRL's quickest trainer to that accuracy, over this; **below "
        "1 Turnout is slower**. Plot: [trl-accuracy.png](trl-accuracy.png), bands from the lowest to the highest "
        "seed.\n"
    )
    head = ["program", "objective", "learning rate", "s a step"]
    for target in TARGETS:
        head += [f"s to {target:g}", "TRL's best / this"]
    rows = []
    for learner, found in curves.items():
        rate = max(tried[learner], key=lambda rate: tried[learner][rate])
        row = [*names(learner), f"{rate:g}", spread(found, lambda curve: curve.pace())]
        for target in TARGETS:
            row += [spread(found, seconds_to(target), 1), ratio(curves, learner, target)]
        rows.append([*row, spread(found, lambda curve: curve.accuracy[max(curve.accuracy)])])
    print(table([*head, "accuracy at the end"], rows))
    print("\nMean accuracy by learning rate on the validation questions, from which the rates were chosen:\n")
    rates = [f"{rate:g}" for rate in options.rates]
    rows = [[*names(learner), *(f"{score:.3f}" for score in scores.values())] for learner, scores in tried.items()]
    print(table(["program", "objective", *rates], rows))
    settings = "; ".join(f"{kind.upper()} {setting}" for kind, setting in best.items())
    print(f"\nTRL's fastest settings: {settings}.", flush=True)


def names(learner: Learner) -> list[str]:
    return [learner.program, learner.objective.upper()]


def seconds_to(target: float) -> Callable[[Curve], float]:
    return lambda curve: curve.seconds_to(target)


def ratio(curves: dict[Learner, list[Curve]], learner: Learner, target: float) -> str:
    """Seconds of TRL's quickest trainer over this one's, of those whose runs all came so far."""

    def mean(of: Learner) -> float:
        return statistics.fmean(curve.seconds_to(target) for curve in curves[of])

    theirs = [seconds for seconds in map(mean, THEIRS) if not math.isnan(seconds)]
    value = min(theirs, default=math.nan) / mean(learner)
    return "" if math.isnan(value) else f"{value:.2f}"


def plot(curves: dict[Learner, list[Curve]]) -> None:
    """Accuracy against seconds of training and against steps, one line a trainer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for learner, found in curves.items():
        longest = min(curve.seconds for curve in found)
        times = [longest * part / 40 for part in range(41)]
        band(left, times, [[curve.accuracy_after(time) for time in times] for curve in found], str(learner))
        marks = sorted(found[0].accuracy)
        band(right, marks, [[curve.accuracy[mark] for mark in marks] for curve in found], "")
    left.set(xlabel="seconds of training, evaluations not counted", ylabel=f"avg@{NUM_SAMPLES} on test questions")
    right.set(xlabel="step")
    left.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=110)


if __name__ == "__main__":
    main()

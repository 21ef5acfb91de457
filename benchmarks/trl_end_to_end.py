"""Whole training loops against TRL's: sampling, judging, training and passing weights on, at two sizes of model.

TRL's GRPOTrainer and SDPOTrainer run with generation by transformers, in the fastest of the settings tried; Turnout is
a whole deployment (queue, API, rollout server with vLLM, verifier, learner). They take turns, and nothing of one runs
in a turn of the other. `--only small` takes about a quarter of an hour, `--only large` ten minutes (the model's folder
comes from `python examples/make_smollm2.py models/smollm2-135m`); `--rounds 1 --steps 4 --values 1` is a short form.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from benchmarks._runs import table
from benchmarks._trl import TRL, say, trl_python
from benchmarks._trl_turns import (
    GROUP_SIZE,
    LARGE,
    SMALL,
    Setting,
    Task,
    Turn,
    all_settings,
    fastest,
    median_turn,
    our_turn,
    trl_turn,
)
from tools.deployment import deployment

KINDS = ("grpo", "sdpo")
COUNTERPART = {"grpo": "grpo", "sdpo": "sdpo", "srpo": "sdpo"}
GOALS = {("small", "grpo"): 1.5, ("small", "srpo"): 2.0, ("large", "grpo"): 6.0, ("large", "srpo"): 6.0}
"""TRL's seconds a step divided by Turnout's, at best."""
SMALL_SIZES = (8, 32)
MEBI = 2**20


@dataclass(frozen=True, slots=True)
class Plan:
    """How one size of model is measured."""

    name: str
    tasks: list[Task]
    objectives: list[str]
    values: list[int]
    """max_staleness"""
    rounds: int
    steps: int
    skipped: int
    """Steps before those that count."""
    tried_steps: int
    """Steps with each of TRL's settings, after as many that do not count as `skipped`; 0 takes the first setting."""


@dataclass(slots=True)
class Result:
    """What was found at one size of step."""

    task: Task
    settings: dict[str, Setting]
    """TRL's fastest, by kind."""
    tried: dict[str, dict[Setting, float]]
    theirs: dict[str, list[Turn]]
    ours: dict[tuple[str, int], list[Turn]]

    def against_trl(self, objective: str, value: int) -> float:
        """TRL's seconds a step with the counterpart of an objective, over Turnout's."""
        theirs = median_turn(self.theirs[COUNTERPART[objective]]).seconds
        return theirs / median_turn(self.ours[objective, value]).seconds


def main() -> None:
    """Measure and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["small", "large"])
    parser.add_argument("--rounds", type=int, default=2, help="of the small model")
    parser.add_argument("--steps", type=int, default=20, help="that count in a turn of the small model")
    parser.add_argument("--large-steps", type=int, default=3, help="the same of the large model, which has one round")
    parser.add_argument("--values", type=int, nargs="+", default=[0, 1, 2], help="max_staleness of the small model")
    parser.add_argument("--large-values", type=int, nargs="+", default=[1], help="and of the large one")
    parser.add_argument("--large-tokens", type=int, default=LARGE.max_tokens, help="of its responses at most")
    parser.add_argument("--large-dtype", choices=["float32", "bfloat16"], default="float32", help="of its passes")
    parser.add_argument("--objectives", nargs="+", default=["grpo", "sdpo", "srpo"])
    parser.add_argument(
        "--untuned", action="store_true", help="take the first of TRL's settings, without trying others"
    )
    parser.add_argument("--environment", type=Path, default=Path(".venv-trl"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that every context is left
    small = [replace(SMALL, prompts=size) for size in SMALL_SIZES]
    large = replace(LARGE, max_tokens=options.large_tokens, dtype=options.large_dtype)
    plans = [
        Plan("small", small, options.objectives, options.values, options.rounds, options.steps, 3, 4),
        Plan("large", [large], options.objectives, options.large_values, 1, options.large_steps, 1, 1),
    ]
    chosen = [plan for plan in plans if options.only in (None, plan.name)]
    if options.untuned:
        chosen = [replace(plan, tried_steps=0) for plan in chosen]
    for plan in chosen:
        if not LARGE.policy.exists() and plan.name == "large":
            raise SystemExit(f"{LARGE.policy} does not exist. Run: python examples/make_smollm2.py models/smollm2-135m")
    python = trl_python(options.environment)
    introduce()
    for plan in chosen:
        show(plan, [measure(python, plan, task) for task in plan.tasks])


def candidates(plan: Plan, task: Task) -> list[Setting]:
    """TRL's settings to try. A step of the large model takes too long for all of them."""
    if plan.name == "large":
        cores = len(os.sched_getaffinity(0))
        found = [Setting(cores, "eager", 16), Setting(cores, "sdpa", 16), Setting(cores, "sdpa", 64)]
        if task.dtype == "bfloat16":
            found.insert(1, replace(found[0], weights="bfloat16"))
        return [*found, Setting(1, "eager", 16)] if cores > 1 else found
    return all_settings(task)


def measure(python: Path, plan: Plan, task: Task) -> Result:
    """Find TRL's best settings, then let all contestants take turns."""
    result = Result(task, {}, {}, {kind: [] for kind in KINDS}, {})
    for kind in KINDS:
        settings, skipped = candidates(plan, task), plan.skipped
        if plan.name == "large":  # where a step takes half a minute, the first one is as good as any
            skipped = 0
            settings = [result.settings["grpo"]] if kind == "sdpo" else settings
        if len(settings) > 1 and plan.tried_steps:
            result.settings[kind], result.tried[kind] = fastest(python, kind, task, settings, plan.tried_steps, skipped)
        else:
            result.settings[kind] = settings[0]
    for number in range(1, plan.rounds + 1):
        for kind in KINDS:
            turn = trl_turn(python, kind, task, result.settings[kind], plan.steps, plan.skipped)
            result.theirs[kind].append(turn)
            progress(f"round {number}: TRL {kind.upper()}", task, turn)
        with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder, deployment(Path(folder)) as client:
            for objective, value in product(plan.objectives, plan.values):
                turn = our_turn(client, Path(folder), objective, task, value, plan.steps, plan.skipped)
                result.ours.setdefault((objective, value), []).append(turn)
                progress(f"round {number}: Turnout {objective.upper()}, max_staleness {value}", task, turn)
    return result


def progress(name: str, task: Task, turn: Turn) -> None:
    parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in turn.parts.items())
    say(
        f"  {name}, {task.prompts} prompts: {turn.seconds:.3f} s a step ({parts}), {turn.peak_bytes / MEBI:.0f} MiB, "
        f"reward {turn.reward:.3f}, {turn.num_tokens:.1f} tokens a response"
    )


def introduce() -> None:
    """What is compared."""
    print(f"## Whole training loops against TRL {TRL}\n")
    print(
        "TRL's GRPOTrainer and SDPOTrainer in their own loops with generation by transformers, in one process, "
        "against complete runs on a deployment of Turnout (queue, API, rollout server with vLLM, verifier, learner), "
        f"on the same two cores. The same policy, questions, rule of reward, {GROUP_SIZE} rollouts a prompt, "
        "temperature, limit of length and learning rate (so small that every step is as much work), float32 unless it "
        "says otherwise, one update per step. They take turns, and nothing of one runs in a turn of the other. A step "
        "is wall-clock time, sampling, judging, training and passing on weights included, after the first steps; "
        "medians of rounds. Memory: TRL's process at most (RSS); all processes of the deployment together at most "
        "(PSS). Ratios: TRL's seconds of a step with GRPO for GRPO, with SDPO for SDPO and SRPO, over this; **below 1 "
        "Turnout is slower**."
    )


def show(plan: Plan, results: Sequence[Result]) -> None:
    """The part about one size of model."""
    parts = (heading(plan), figures(results), verdict(plan, results), tried(results))
    print("\n" + "\n\n".join(parts), flush=True)


def heading(plan: Plan) -> str:
    task, sizes = plan.tasks[0], " and ".join(str(task.prompts) for task in plan.tasks)
    name = "The embedded policy (0.2 M parameters)" if plan.name == "small" else "SmolLM2-135M"
    rounds = f"{plan.rounds} round{'s'[: plan.rounds - 1]} of {plan.steps} steps"
    dtype = "" if task.dtype == "float32" else f" in {task.dtype}"
    return f"**{name}{dtype}**, {sizes} prompts a step, at most {task.max_tokens} tokens, {rounds}:"


def figures(results: Sequence[Result]) -> str:
    """One row a contestant."""
    head = [
        "prompts",
        "program",
        "s a step",
        "rollouts/s",
        "TRL / this",
        "peak memory",
        "TRL generates",
        "Turnout waits",
    ]
    head += ["Turnout's teacher", "Turnout trains", "reward", "tokens a response"]
    rows = []
    for result in results:
        for kind, turns in result.theirs.items():
            rows.append(row(f"TRL {kind.upper()}", result.task, median_turn(turns), 1.0))
        for (objective, value), turns in result.ours.items():
            name = f"Turnout {objective.upper()}, `max_staleness` {value}"
            rows.append(row(name, result.task, median_turn(turns), result.against_trl(objective, value)))
    return table(head, rows)


def row(name: str, task: Task, turn: Turn, ratio: float) -> list[str]:
    parts = [
        f"{turn.parts[part]:.3f}" if part in turn.parts else "" for part in ("generating", "wait", "teacher", "train")
    ]
    memory = f"{turn.peak_bytes / 2**30:.1f} GiB"
    rate = task.num_rollouts / turn.seconds
    cells = [f"{turn.seconds:.3f}", f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}", f"{ratio:.2f}", memory, *parts]
    return [str(task.prompts), name, *cells, f"{turn.reward:.2f}", f"{turn.num_tokens:.1f}"]


def verdict(plan: Plan, results: Sequence[Result]) -> str:
    """Where Turnout loses, and whether the goals are met."""
    pairs = [(result, *key, result.against_trl(*key)) for result in results for key in result.ours]
    lost = [
        f"{objective.upper()} with {result.task.prompts} prompts at `max_staleness` {value} ({ratio:.2f})"
        for result, objective, value, ratio in pairs
        if ratio < 1
    ]
    lines = [f"Turnout is slower than TRL in {len(lost)} of {len(pairs)} rows: {', '.join(lost)}." if lost else ""]
    lines += ["" if lost else f"Turnout is faster than TRL in all {len(pairs)} rows."]
    for (name, objective), goal in GOALS.items():
        best = {
            result.task.prompts: max(ratio for other, at, _, ratio in pairs if at == objective and other is result)
            for result in results
            if any(at == objective for _, at, _, _ in pairs)
        }
        if name == plan.name and best:
            reached = ", ".join(f"{ratio:.2f} with {prompts} prompts" for prompts, ratio in best.items())
            lines.append(f"Goal for {objective.upper()}: {goal:g}; at best {reached}.")
    return " ".join(filter(None, lines))


def tried(results: Sequence[Result]) -> str:
    """TRL's settings, those that were used first."""
    lines = []
    for result in results:
        for kind, times in result.tried.items():
            ordered = sorted(times.items(), key=lambda item: item[1])
            listed = "; ".join(f"{setting}: {seconds:.3f}" for setting, seconds in ordered)
            lines.append(f"- {kind.upper()}, {result.task.prompts} prompts: {listed}")
    if not lines:
        return f"TRL's setting: {results[0].settings['grpo']}; no others were tried in this measurement."
    return (
        "TRL's settings that were tried, in seconds a step; the first of each line is the one above:\n\n"
        + "\n".join(lines)
    )


if __name__ == "__main__":
    main()

"""A turn of each program in `trl_end_to_end`: TRL's whole training loop, and a run on a deployment."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks._memory import peak_memory
from benchmarks._trl import ROOT, say, trainer
from tools.deployment import demo_config, finish
from turnout import Client

GROUP_SIZE = 8
UNCHANGED = 1e-9
"""A learning rate that leaves the policy as it is, so that every step of every program is as much work."""


@dataclass(frozen=True, slots=True)
class Task:
    """What both programs train, on what, and how."""

    policy: Path
    train: Path
    validation: Path
    prompts: int
    """In one step, with `GROUP_SIZE` rollouts each."""
    max_tokens: int
    temperature: float = 1.0
    tokens_per_microbatch: int = 16384
    dtype: str = "float32"
    """Of the passes; both programs keep the weights that the optimizer changes in float32 if a setting of TRL does not
    say otherwise."""
    learning_rate: float = UNCHANGED
    warmup_steps: int = 0

    @property
    def num_rollouts(self) -> int:
        return self.prompts * GROUP_SIZE


@dataclass(frozen=True, slots=True)
class Setting:
    """What may make TRL faster or slower."""

    threads: int
    attention: str
    microbatch: int
    weights: str = "float32"
    """dtype"""

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s'[: self.threads - 1]}"
        weights = "" if self.weights == "float32" else f", weights in {self.weights}"
        return f"{threads}, {self.attention}, {self.microbatch} rows a pass{weights}"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one program did in one turn; means of steps after the first ones."""

    seconds: float
    """Wall-clock time of a step."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of a step by part."""
    peak_bytes: int = 0
    reward: float = 0.0
    num_tokens: float = 0.0
    """Tokens of a response."""


def trl_order(kind: str, task: Task, setting: Setting, steps: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    """An order for TRL's process."""
    return {
        "kind": kind,
        "policy": str(task.policy),
        "questions": str(task.train),
        "prompts": task.prompts,
        "group_size": GROUP_SIZE,
        "max_tokens": task.max_tokens,
        "temperature": task.temperature,
        "learning_rate": task.learning_rate,
        "warmup_steps": task.warmup_steps,
        "threads": setting.threads,
        "dtype": task.dtype,
        "attention": setting.attention,
        "weights": setting.weights,
        "microbatch": setting.microbatch,
        "steps": steps,
        "seed": seed,
        "options": {},
        "every_steps": 0,  # no evaluations
    } | more


def trl_turn(python: Path, kind: str, task: Task, setting: Setting, steps: int, skipped: int) -> Turn:
    """TRL's trainer makes `skipped` steps and then `steps` that count."""
    with trainer(python, "_trl_loop_side") as ask:
        found = answer(ask, trl_order(kind, task, setting, skipped + steps))
    return Turn(
        seconds=statistics.fmean(found["seconds"][skipped:]),
        parts={"generating": statistics.fmean(found["generating"][skipped:])},
        peak_bytes=found["peak_bytes"],
        reward=statistics.fmean(found["rewards"][skipped:]),
        num_tokens=statistics.fmean(found["num_tokens"][skipped:]),
    )


def answer(ask: Callable[[str, str], str], order: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(json.dumps(order), "DONE"))
    return found


def all_settings(task: Task) -> list[Setting]:
    """TRL's settings to try where a step is short."""
    sizes, threads = (task.num_rollouts, task.num_rollouts // 4), {1, len(os.sched_getaffinity(0))}
    return [Setting(*values) for values in product(sorted(threads), ("sdpa", "eager"), sizes)]


def fastest(
    python: Path, kind: str, task: Task, settings: Sequence[Setting], steps: int, skipped: int
) -> tuple[Setting, dict[Setting, float]]:
    """The best of TRL's settings, and the median seconds of a step with each."""
    times: dict[Setting, float] = {}
    with trainer(python, "_trl_loop_side") as ask:
        for setting in settings:
            found = answer(ask, trl_order(kind, task, setting, skipped + steps))
            times[setting] = statistics.median(found["seconds"][skipped:])
            say(f"  trying TRL {kind.upper()}, {task.prompts} prompts, {setting}: {times[setting]:.3f} s a step")
    return min(times, key=lambda setting: times[setting]), times


def our_config(objective: str, task: Task, steps: int, max_staleness: int, seed: int = 0) -> dict[str, Any]:
    """A run file for the same task, without evaluations."""
    config = demo_config(
        name=f"{objective} {max_staleness}",
        model={"path": str(task.policy), "dtype": task.dtype},
        data={"train": str(task.train), "validation": str(task.validation)},
        rollout={
            "group_size": GROUP_SIZE,
            "temperature": task.temperature,
            "max_response_tokens": task.max_tokens,
        },
        optimizer={"learning_rate": task.learning_rate, "warmup_steps": task.warmup_steps},
        training={
            "steps": steps,
            "seed": seed,
            "prompts_per_step": task.prompts,
            "max_staleness": max_staleness,
            "tokens_per_microbatch": task.tokens_per_microbatch,
            "zero_stage": 0 if task.dtype == "float32" else 1,  # the least of one rank
        },
        evaluation={"every_steps": None, "before_training": False, "after_training": False},
        checkpoint={"every_steps": 1000, "keep_last": 1},
    )
    return {**config, "objective": {"name": objective}}


def our_turn(
    client: Client, home: Path, objective: str, task: Task, max_staleness: int, steps: int, skipped: int
) -> Turn:
    """A run of `steps` steps that count, between those at the start, before the ring goes round, and those at the end,
    for which nothing is sampled any more."""
    skipped += max_staleness + 1
    total = skipped + steps + max_staleness
    with peak_memory(home) as peak:
        run = client.create_run(our_config(objective, task, total, max_staleness))
        ended = finish(client, run.id)
    if ended.state != "succeeded":
        raise SystemExit(f"run {run.id} is {ended.state}: {ended.reason}")
    rows = [step.metrics for step in client.steps(run.id)][skipped : skipped + steps]
    client.delete(run.id)  # a checkpoint of the large model takes gigabytes

    def mean(name: str) -> float:
        return statistics.fmean(row[name] for row in rows)

    parts = {name: mean(f"seconds_{name}") for name in ("wait", "teacher", "train")}
    return Turn(mean("seconds"), parts, peak.bytes, mean("reward_mean"), mean("response_tokens_mean"))


def median_turn(turns: Sequence[Turn]) -> Turn:
    """Medians over rounds; the most of the memory."""

    def median(value: Callable[[Turn], float]) -> float:
        return statistics.median(map(value, turns))

    return replace(
        turns[0],
        seconds=median(lambda turn: turn.seconds),
        parts={name: median(lambda turn, name=name: turn.parts[name]) for name in turns[0].parts},  # type: ignore[misc]
        peak_bytes=max(turn.peak_bytes for turn in turns),
        reward=statistics.fmean(turn.reward for turn in turns),
        num_tokens=statistics.fmean(turn.num_tokens for turn in turns),
    )


SMALL = Task(
    policy=ROOT / "examples" / "embedded" / "policy",
    train=ROOT / "examples" / "embedded" / "data" / "train.jsonl",
    validation=ROOT / "examples" / "embedded" / "data" / "test.jsonl",
    prompts=8,
    max_tokens=64,
)
LARGE = Task(
    policy=ROOT / "models" / "smollm2-135m",
    train=ROOT / "examples" / "smollm2" / "lenient" / "train.jsonl",
    validation=ROOT / "examples" / "smollm2" / "lenient" / "validation.jsonl",
    prompts=8,
    max_tokens=24,
    temperature=0.7,
    tokens_per_microbatch=2048,
)

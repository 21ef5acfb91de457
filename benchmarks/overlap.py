"""Does asynchrony pay? The ring against each of its sides alone, and against its own synchronous mode.

Two cores: the rollout server has one for itself, the learner shares the other with everything else. A side alone is
measured in the ring itself: with credit for all steps the rollout server fills the queue while the learner is paused,
then the learner empties it while the rollout server has nothing to do. Short form: `--steps 24 --accuracy-steps 0`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks._runs import play, spread, table
from services.cli.client import Client
from services.cli.processes import read_state
from services.contracts import streams
from services.runtime.queue import connect
from tests.ring.deployment import demo_config, deployment, finish, patiently

GOAL = 0.95
TARGET_ACCURACY = 0.6
PROMPTS_PER_STEP = 8


def main() -> None:
    """Measure and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--values", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--accuracy-steps", type=int, default=100, help="0 leaves the comparison at equal accuracy out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder, deployment(Path(folder)) as client:
        pin(Path(folder))
        alone = [sides_alone(client, Path(folder), options.steps) for _ in range(options.rounds)]
        ring = {
            value: [ring_rate(client, options.steps, value) for _ in range(options.rounds)] for value in options.values
        }
        curves = {
            value: [
                play(
                    client,
                    f"pinned, max_staleness {value}",
                    steps=options.accuracy_steps,
                    seed=0,
                    evaluations=10,
                    training={"max_staleness": value},
                )
            ]
            for value in (options.values if options.accuracy_steps else [])
        }
    show(alone, ring, options.steps, options.rounds)
    if curves:
        print(f"\nThe demo's learning rate, {options.accuracy_steps} steps, seed 0; evaluations are not counted:\n")
        to = f"s to accuracy {TARGET_ACCURACY}"
        rows = [
            [
                str(value),
                spread(found, lambda curve: curve.seconds_to(TARGET_ACCURACY), 1),
                spread(found, lambda curve: curve.seconds, 1),
                spread(found, lambda curve: curve.accuracy[max(curve.accuracy)]),
            ]
            for value, found in curves.items()
        ]
        print(table(["max_staleness", to, "s in all", "accuracy at the end"], rows))


def pin(home: Path) -> None:
    """The rollout server's process on the first core, all others of the deployment on the second."""
    cores = sorted(os.sched_getaffinity(0))
    state = read_state(home)
    assert state is not None
    if len(cores) < 2:
        raise SystemExit("Two cores are needed to tell the two sides apart.")
    for record in state.processes:
        core = cores[0] if record.instance.startswith("rollout") else cores[1]
        process = psutil.Process(record.pid)
        for each in [process, *process.children(recursive=True)]:
            for thread in each.threads():  # the call is about one thread, and what it starts later
                os.sched_setaffinity(thread.id, {core})


def config(steps: int, max_staleness: int) -> dict[str, Any]:
    """The demo's run without evaluations; its policy stays as it is, so that every step is as much work."""
    return demo_config(
        name=f"overlap {max_staleness}",
        training={"steps": steps, "prompts_per_step": PROMPTS_PER_STEP, "max_staleness": max_staleness},
        optimizer={"learning_rate": 1e-9},
        evaluation={"every_steps": None, "before_training": False, "after_training": False},
    )


def sides_alone(client: Client, home: Path, steps: int) -> tuple[float, float]:
    """Groups a second of the rollout server alone and of the learner alone."""
    run = client.create_run(config(steps, steps))
    patiently(lambda: client.run(run.id), lambda found: found.state == "running")
    client.pause(run.id)
    patiently(lambda: client.run(run.id), lambda found: found.state == "paused")
    first = client.run(run.id).step
    wanted = steps * PROMPTS_PER_STEP - 2 * PROMPTS_PER_STEP
    state = read_state(home)
    assert state is not None
    times = patiently(lambda: scored_at(state.redis_url, run.id), lambda found: len(found) >= wanted)
    client.resume(run.id)
    finish(client, run.id)
    rollout = rate(times[PROMPTS_PER_STEP * (first + 1) :])
    learner = rate(ends(client, run.id)[first + 2 :]) * PROMPTS_PER_STEP
    print(f"  alone: rollout {rollout:.1f}, learner {learner:.1f} groups/s", file=sys.stderr, flush=True)
    return rollout, learner


def scored_at(url: str, run_id: str) -> list[float]:
    """When each group on `scored` was put there, in seconds: stream ids are the server's clock."""

    async def read() -> list[float]:
        redis = connect(url)
        try:
            found: Any = await redis.xrange(streams.scored(run_id))
            return [int(entry.decode().split("-")[0]) / 1000 for entry, _ in found]
        finally:
            await redis.aclose()

    time.sleep(1.0)  # what is measured shares the machine with the one who looks
    return asyncio.run(read())


def ends(client: Client, run_id: str) -> list[float]:
    """Cumulated seconds of the steps."""
    total, result = 0.0, []
    for step in client.steps(run_id):
        total += step.metrics["seconds"]
        result.append(total)
    return result


def rate(times: Sequence[float]) -> float:
    """Events a second from the first to the last."""
    return (len(times) - 1) / max(times[-1] - times[0], 1e-9)


def ring_rate(client: Client, steps: int, max_staleness: int) -> tuple[float, float, float]:
    """Groups a second of the whole ring once it goes round, seconds a step, share in which the learner waits."""
    run = client.create_run(config(steps, max_staleness))
    ended = finish(client, run.id)
    if ended.state != "succeeded":
        raise SystemExit(f"run {run.id} is {ended.state}: {ended.reason}")
    metrics = [step.metrics for step in client.steps(run.id)]
    skipped = min(len(metrics) // 4, 2 * (max_staleness + 1) + 2)
    steady = metrics[skipped : len(metrics) - max_staleness]
    seconds = sum(row["seconds"] for row in steady)
    waiting = sum(row["seconds_wait"] for row in steady) / seconds
    found = PROMPTS_PER_STEP * len(steady) / seconds
    print(f"  max_staleness {max_staleness}: {found:.1f} groups/s, {waiting:.0%} waiting", file=sys.stderr, flush=True)
    return found, seconds / len(steady), waiting


def show(
    alone: list[tuple[float, float]], ring: dict[int, list[tuple[float, float, float]]], steps: int, rounds: int
) -> None:
    rollout = statistics.median(item[0] for item in alone)
    learner = statistics.median(item[1] for item in alone)
    slower = min(rollout, learner)
    print("## Overlap of sampling and training\n")
    print(
        f"The demo's run without evaluations, {steps} steps of {PROMPTS_PER_STEP} groups, policy kept as it is; "
        f"rollout server on one core, all others on the second; medians of {rounds} rounds. Alone, the rollout server "
        f"makes {rollout:.1f} groups a second, the learner trains {learner:.1f}; together they could do {slower:.1f}.\n"
    )
    rows = []
    synchronous = statistics.median(item[0] for item in ring[0]) if 0 in ring else 0.0
    for value, found in ring.items():
        groups, seconds, waiting = (statistics.median(column) for column in zip(*found, strict=True))
        to_synchronous = f"{groups / synchronous:.2f}" if synchronous else ""
        row = [value, f"{groups:.1f}", f"{groups / slower:.2f}", to_synchronous, f"{seconds:.3f}", f"{waiting:.0%}"]
        rows.append([str(cell) for cell in row])
    head = ["max_staleness", "groups/s", "of the slower side alone", "of max_staleness 0", "s a step", "learner waits"]
    print(table(head, rows))
    best = max(statistics.median(item[0] for item in found) for found in ring.values()) / slower
    print(f"\nGoal: {GOAL} of the slower side; the best here is {best:.2f}.")


if __name__ == "__main__":
    main()

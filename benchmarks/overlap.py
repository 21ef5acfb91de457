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
from dataclasses import dataclass
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
            value: [ring_rate(client, Path(folder), options.steps, value) for _ in range(options.rounds)]
            for value in options.values
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


@dataclass(frozen=True, slots=True)
class Ring:
    """One run of the whole ring, once it goes round."""

    groups_a_second: float
    step_seconds: float
    waiting: float
    """Share of the time in which the learner waits."""
    cpu: dict[str, float]
    """CPU seconds a second, by service."""


def ring_rate(client: Client, home: Path, steps: int, max_staleness: int) -> Ring:
    """Run the ring and measure it."""
    run = client.create_run(config(steps, max_staleness))
    skipped = min(steps // 4, 2 * (max_staleness + 1) + 2)
    patiently(lambda: client.run(run.id).step, lambda step: step >= skipped)
    before, started = cpu_seconds(home), time.monotonic()
    patiently(lambda: client.run(run.id).step, lambda step: step >= steps - max_staleness - 3)
    after, passed = cpu_seconds(home), time.monotonic() - started
    ended = finish(client, run.id)
    if ended.state != "succeeded":
        raise SystemExit(f"run {run.id} is {ended.state}: {ended.reason}")
    metrics = [step.metrics for step in client.steps(run.id)]
    steady = metrics[skipped : steps - max_staleness]
    seconds = sum(row["seconds"] for row in steady)
    found = Ring(
        groups_a_second=PROMPTS_PER_STEP * len(steady) / seconds,
        step_seconds=seconds / len(steady),
        waiting=sum(row["seconds_wait"] for row in steady) / seconds,
        cpu={name: (after[name] - before[name]) / max(passed, 1e-9) for name in before},
    )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.cpu.items())
    figures = f"{found.groups_a_second:.1f} groups/s, {found.waiting:.0%} waiting; CPU {shares}"
    print(f"  max_staleness {max_staleness}: {figures}", file=sys.stderr, flush=True)
    return found


def cpu_seconds(home: Path) -> dict[str, float]:
    """CPU seconds so far by service, those of its child processes included."""
    state = read_state(home)
    assert state is not None
    found: dict[str, float] = {}
    for record in state.processes:
        process = psutil.Process(record.pid)
        name = record.instance.rsplit("-", 1)[0]
        for each in [process, *process.children(recursive=True)]:
            try:
                times = each.cpu_times()
            except psutil.NoSuchProcess:  # a sandbox's process, just ended
                continue
            found[name] = found.get(name, 0.0) + times.user + times.system
    return found


def show(alone: list[tuple[float, float]], ring: dict[int, list[Ring]], steps: int, rounds: int) -> None:
    rollout = statistics.median(item[0] for item in alone)
    learner = statistics.median(item[1] for item in alone)
    slower = min(rollout, learner)
    print("## Overlap of sampling and training\n")
    print(
        f"The demo's run without evaluations, {steps} steps of {PROMPTS_PER_STEP} groups, policy kept as it is; "
        f"rollout server on one core, all others on the second; medians of {rounds} rounds. Alone, the rollout server "
        f"makes {rollout:.1f} groups a second, the learner trains {learner:.1f}; together they could do {slower:.1f}. "
        "CPU is the share of one core.\n"
    )
    rows = []
    services = list(next(iter(ring.values()))[0].cpu)
    synchronous = statistics.median(item.groups_a_second for item in ring[0]) if 0 in ring else 0.0
    for value, found in ring.items():
        groups = statistics.median(item.groups_a_second for item in found)
        row = [str(value), f"{groups:.1f}", f"{groups / slower:.2f}"]
        row += [f"{groups / synchronous:.2f}" if synchronous else ""]
        row += [f"{statistics.median(item.step_seconds for item in found):.3f}"]
        row += [f"{statistics.median(item.waiting for item in found):.0%}"]
        row += [f"{statistics.median(item.cpu.get(name, 0.0) for item in found):.0%}" for name in services]
        rows.append(row)
    head = ["max_staleness", "groups/s", "of the slower side alone", "of max_staleness 0", "s a step", "learner waits"]
    print(table([*head, *(f"CPU {name}" for name in services)], rows))
    best = max(statistics.median(item.groups_a_second for item in found) for found in ring.values()) / slower
    print(f"\nGoal: {GOAL} of the slower side; the best here is {best:.2f}.")


if __name__ == "__main__":
    main()

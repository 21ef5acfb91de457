"""Does asynchrony pay? The ring against each of its sides alone, and against its own synchronous mode.

Two cores: the rollout server has one for itself, the learner shares the other with everything else. A side alone is
measured in the ring itself: with credit for all steps the rollout server fills the queue while the learner is paused,
then the learner empties it while the rollout server has nothing to do.

Short form: `--groups 192 --rounds 1 --accuracy-steps 0`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks._runs import play, seeds_text, spread, table
from services.contracts import streams
from services.runtime.connection import connect
from tools.deployment import demo_config, deployment, finish, patiently
from turnout import Client
from turnout.cli.local.processes import read_state

GOAL = 0.95
TARGET_ACCURACY = 0.6


def main() -> None:
    """Measure and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=480, help="groups in one run")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32], help="groups a step")
    parser.add_argument("--values", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--accuracy-steps", type=int, default=100, help="0 leaves the comparison at equal accuracy out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of that comparison")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder, deployment(Path(folder)) as client:
        pin(Path(folder))
        sections = {
            size: compare(client, Path(folder), options.groups // size, size, options.values, options.rounds)
            for size in options.sizes
        }
        curves = {
            value: [
                play(
                    client,
                    f"pinned max_staleness {value}",
                    steps=options.accuracy_steps,
                    seed=seed,
                    evaluations=10,
                    training={"max_staleness": value},
                )
                for seed in options.seeds
            ]
            for value in (options.values if options.accuracy_steps else [])
        }
    show(sections, options.rounds)
    if curves:
        about = f"{options.accuracy_steps} steps, {seeds_text(options.seeds)}"
        print(f"\nThe demo's learning rate, {about}; evaluations are not counted:\n")
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


def compare(client: Client, home: Path, steps: int, size: int, values: list[int], rounds: int) -> Section:
    """Both sides alone, then the ring at each `max_staleness`; `rounds` times, in turn."""
    alone: list[tuple[float, float]] = []
    ring: dict[int, list[Ring]] = {value: [] for value in values}
    for _ in range(rounds):
        alone.append(sides_alone(client, home, steps, size))
        for value in values:
            ring[value].append(ring_rate(client, home, steps, size, value))
    return Section(alone, ring)


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


def config(steps: int, size: int, max_staleness: int) -> dict[str, Any]:
    """The demo's run without evaluations; its policy stays as it is, so that every step is as much work."""
    return demo_config(
        name=f"overlap {max_staleness}",
        training={"steps": steps, "prompts_per_step": size, "max_staleness": max_staleness},
        optimizer={"learning_rate": 1e-9},
        evaluation={"every_steps": None, "before_training": False, "after_training": False},
    )


def sides_alone(client: Client, home: Path, steps: int, size: int) -> tuple[float, float]:
    """Groups a second of the rollout server alone and of the learner alone."""
    run = client.create_run(config(steps, size, steps))
    patiently(lambda: client.run(run.id), lambda found: found.state == "running")
    client.pause(run.id)
    patiently(lambda: client.run(run.id), lambda found: found.state == "paused")
    first = client.run(run.id).step
    wanted = (steps - 2) * size
    state = read_state(home)
    assert state is not None
    times = patiently(lambda: scored_at(state.redis_url, run.id), lambda found: len(found) >= wanted)
    client.resume(run.id)
    finish(client, run.id)
    rollout = rate(times[size * (first + 1) :])
    learner = rate(ends(client, run.id)[first + 2 :]) * size
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
    pushing: float
    """Share of the time in which the rollout server is being given new weights, and does not sample."""
    cpu: dict[str, float]
    """CPU seconds a second, by service."""


@dataclass(frozen=True, slots=True)
class Section:
    """What was found at one size of step."""

    alone: list[tuple[float, float]]
    """Groups a second of rollout server and learner."""
    ring: dict[int, list[Ring]]
    """By max_staleness."""

    @property
    def rollout(self) -> float:
        return statistics.median(item[0] for item in self.alone)

    @property
    def learner(self) -> float:
        return statistics.median(item[1] for item in self.alone)

    def median(self, value: int, figure: Callable[[Ring], float]) -> float:
        return statistics.median(figure(item) for item in self.ring[value])


def ring_rate(client: Client, home: Path, steps: int, size: int, max_staleness: int) -> Ring:
    """Run the ring and measure it."""
    run = client.create_run(config(steps, size, max_staleness))
    skipped = min(steps // 4, 2 * (max_staleness + 1) + 2)
    patiently(lambda: client.run(run.id).step, lambda step: step >= skipped)
    before, pushed, started = cpu_seconds(home), push_seconds(client), time.monotonic()
    patiently(lambda: client.run(run.id).step, lambda step: step >= steps - max_staleness - 3)
    after, pushed_after, passed = cpu_seconds(home), push_seconds(client), time.monotonic() - started
    ended = finish(client, run.id)
    if ended.state != "succeeded":
        raise SystemExit(f"run {run.id} is {ended.state}: {ended.reason}")
    metrics = [step.metrics for step in client.steps(run.id)]
    steady = metrics[skipped : steps - max_staleness]
    seconds = sum(row["seconds"] for row in steady)
    found = Ring(
        groups_a_second=size * len(steady) / seconds,
        step_seconds=seconds / len(steady),
        waiting=sum(row["seconds_wait"] for row in steady) / seconds,
        pushing=(pushed_after - pushed) / max(passed, 1e-9),
        cpu={name: (after[name] - before[name]) / max(passed, 1e-9) for name in before},
    )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.cpu.items())
    figures = (
        f"{found.groups_a_second:.1f} groups/s, {found.waiting:.0%} waiting, {found.pushing:.0%} pushing; CPU {shares}"
    )
    print(f"  {size} groups a step, max_staleness {max_staleness}: {figures}", file=sys.stderr, flush=True)
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


def push_seconds(client: Client) -> float:
    """Seconds that weight updates have taken so far."""
    with urllib.request.urlopen(f"{client.url}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("turnout_weight_push_seconds_sum"))


def show(sections: dict[int, Section], rounds: int) -> None:
    print("## Overlap of sampling and training\n")
    print(
        "The demo's run without evaluations, with the policy unchanged; the rollout server on one core, all others on "
        f"the second; medians of {rounds} rounds. Alone: groups per second of a side while the other is stopped. "
        "Updating: share of the time in which the server loads weights, once per step. CPU: share of one core. "
        f"Goal: {GOAL} of the slower side alone.\n"
    )
    services = list(next(iter(next(iter(sections.values())).ring.values()))[0].cpu)
    head = [
        "groups a step",
        "max_staleness",
        "groups/s",
        "rollout alone",
        "learner alone",
        "of the slower",
        "of synchronous",
    ]
    head += ["s a step", "learner waits", "updating"]
    rows, shares = [], []
    for size, section in sections.items():
        slower = min(section.rollout, section.learner)
        for value in section.ring:
            groups = section.median(value, lambda item: item.groups_a_second)
            row = [str(size), str(value), *(f"{item:.1f}" for item in (groups, section.rollout, section.learner))]
            row += [f"{groups / slower:.2f}"]
            row += [f"{groups / section.median(0, lambda item: item.groups_a_second):.2f}" if 0 in section.ring else ""]
            row += [f"{section.median(value, lambda item: item.step_seconds):.3f}"]
            row += [f"{section.median(value, lambda item: item.waiting):.0%}"]
            row += [f"{section.median(value, lambda item: item.pushing):.0%}"]
            rows.append(row)
            cpu = [section.median(value, lambda item, name=name: item.cpu.get(name, 0.0)) for name in services]
            shares.append([*row[:2], *(f"{share:.0%}" for share in cpu)])
    print(table(head, rows) + "\n")
    print(table([*head[:2], *(f"CPU {name}" for name in services)], shares))


if __name__ == "__main__":
    main()

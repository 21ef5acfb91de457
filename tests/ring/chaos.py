"""A run under SIGKILLs, and what must hold afterwards.

python -m tests.ring.chaos [--steps 60] [--kills 30] [--seed 0]        the long form, `make chaos`
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from services.cli.client import Client
from services.contracts.states import TERMINAL_STATES
from tests.ring.deployment import demo_config, deployment, finish, kill, patiently

INSTANCES = ("rollout-0", "verifier-0", "learner-0", "api-0", "valkey")


def ledger_faults(client: Client, run_id: str, *, num_training_steps: int, prompts_per_step: int = 8) -> list[str]:
    """What is wrong with a finished run's accounts; empty where every group is accounted for exactly once."""
    faults = []
    numbers = [step.step for step in client.steps(run_id)]
    if numbers != list(range(1, num_training_steps + 1)):
        faults.append(f"steps are {numbers}")
    groups = client.run(run_id).groups
    dropped = sum(count for name, count in groups.items() if name.startswith("dropped_"))
    if groups.get("trained") != num_training_steps * prompts_per_step:
        faults.append(f"{groups.get('trained')} groups trained, not {num_training_steps * prompts_per_step}")
    if groups.get("fed") != groups.get("trained", 0) + dropped + groups.get("in_flight", 0):
        faults.append(f"ledger does not balance: {groups}")
    return faults


class Chaos:
    """Kills instances of a deployment, each after the run has made progress since the last kill."""

    def __init__(self, client: Client, home: Path, run_id: str, num_training_steps: int) -> None:
        self.client = client
        self.home = home
        self.run_id = run_id
        self.num_training_steps = num_training_steps
        self.num_kills = 0

    def kill_all(self, instances: list[str]) -> None:
        """Kill each in turn, spread evenly over the run's steps; ends early where the run does."""
        for number, instance in enumerate(instances):
            due = 1 + number * (self.num_training_steps - 2) // len(instances)
            run = patiently(
                lambda: self.client.run(self.run_id),
                lambda run, due=due: run.step >= due or run.state in TERMINAL_STATES,
            )
            if run.state in TERMINAL_STATES:
                return
            patiently(lambda name=instance: kill(self.home, name), bool)
            self.num_kills += 1
            print(f"step {run.step}: killed {instance}", flush=True)


def main() -> int:
    """The long form; prints the ledger, exit code 1 where it does not balance or the run did not succeed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    victims = [INSTANCES[number % len(INSTANCES)] for number in range(options.kills)]
    chance.shuffle(victims)
    with tempfile.TemporaryDirectory(prefix="turnout-chaos-") as folder, deployment(Path(folder)) as client:
        started = time.monotonic()
        run = client.create_run(
            demo_config(
                training={"steps": options.steps}, checkpoint={"every_steps": 5}, evaluation={"every_steps": None}
            )
        )
        chaos = Chaos(client, Path(folder), run.id, options.steps)
        chaos.kill_all(victims)
        ended = finish(client, run.id)
        faults = ledger_faults(client, run.id, num_training_steps=options.steps)
        for evaluation in client.evaluations(run.id):
            print(f"avg@{evaluation.num_samples} after step {evaluation.step}: {evaluation.accuracy:.3f}")
        print(
            f"{chaos.num_kills} kills; run {ended.state} at step {ended.step} after {time.monotonic() - started:.0f} s"
        )
        print(f"ledger: {ended.groups}")
    for fault in faults:
        print(f"FAULT: {fault}")
    return int(bool(faults) or ended.state != "succeeded")


if __name__ == "__main__":
    sys.exit(main())

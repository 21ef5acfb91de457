"""A run under SIGKILLs, with servers that join and leave, and what must hold afterwards.

python -m tests.ring.chaos [--steps 60] [--kills 30] [--seed 0]        the long form, `make chaos`
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from services.cli.client import Client
from services.contracts.states import TERMINAL_STATES
from tests.ring.deployment import demo_config, deployment, finish, joined, kill, patiently, service

INSTANCES = ("rollout-0", "verifier-0", "learner-0", "api-0", "valkey")


class Action(NamedTuple):
    """One thing that is done to a running deployment."""

    verb: str
    """`kill`, `join`, `leave` or `vanish`: the method of `Chaos` of that name."""
    instance: str


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
    """Kills instances of a deployment, lets others join and leave, each after the run has made progress since the last.

    `close` it: it ends the servers that have joined and not left.
    """

    def __init__(self, client: Client, home: Path, run_id: str, num_training_steps: int) -> None:
        self.client = client
        self.home = home
        self.run_id = run_id
        self.num_training_steps = num_training_steps
        self.num_done = 0
        self._joined: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    def do_all(self, actions: Sequence[Action]) -> None:
        """Do each in turn, spread evenly over the run's steps; ends early where the run does."""
        for number, action in enumerate(actions):
            due = 1 + number * (self.num_training_steps - 2) // len(actions)
            run = patiently(
                lambda: self.client.run(self.run_id),
                lambda run, due=due: run.step >= due or run.state in TERMINAL_STATES,
            )
            if run.state in TERMINAL_STATES:
                return
            print(f"step {run.step}: {action.verb} {action.instance}", flush=True)
            getattr(self, action.verb)(action.instance)
            self.num_done += 1

    def kill(self, instance: str) -> None:
        """SIGKILL to an instance that its supervisor starts again."""
        patiently(lambda: kill(self.home, instance), bool)

    def join(self, instance: str) -> None:
        """Start one more rollout server. It is assigned, has the newest weights before it samples, and then samples.

        The run is paused meanwhile, so that it cannot end first and the newest version is known.
        """
        patiently(lambda: self.client.pause(self.run_id), lambda _: True)
        run = patiently(lambda: self.client.run(self.run_id), lambda run: run.state in ("paused", *TERMINAL_STATES))
        self._joined[instance] = self._stack.enter_context(joined(self.home, instance))
        record = patiently(lambda: service(self.client, instance), lambda found: found and found.state == "ready")
        assert (record.run_id, record.weight_version) == (self.run_id, run.step), record
        patiently(lambda: self.client.resume(self.run_id), lambda _: True)
        patiently(lambda: service(self.client, instance), lambda found: found and found.tokens_total > 0)

    def leave(self, instance: str) -> None:
        """SIGTERM to a server that joined: it ends in order and is not shown any more. Nobody starts it again."""
        process = self._joined[instance]
        process.terminate()
        assert process.wait(60) == 0
        patiently(lambda: self.client.services(), lambda found: instance not in {record.instance for record in found})

    def vanish(self, instance: str) -> None:
        """SIGKILL to a server that joined. Nobody starts it again."""
        self._joined[instance].kill()


def long_form(num_kills: int, chance: random.Random) -> list[Action]:
    """Kills of all instances in random order; between them two servers join: one leaves in order, one vanishes."""
    actions = [Action("kill", INSTANCES[number % len(INSTANCES)]) for number in range(num_kills)]
    chance.shuffle(actions)
    changes = [("join", "rollout-1"), ("leave", "rollout-1"), ("join", "rollout-2"), ("vanish", "rollout-2")]
    for number, (verb, instance) in enumerate(changes):
        actions.insert((number + 1) * (num_kills + 4) // 5, Action(verb, instance))
    return actions


def main() -> int:
    """The long form; prints the ledger, exit code 1 where it does not balance or the run did not succeed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    actions = long_form(options.kills, random.Random(options.seed))
    with tempfile.TemporaryDirectory(prefix="turnout-chaos-") as folder, deployment(Path(folder)) as client:
        started = time.monotonic()
        run = client.create_run(
            demo_config(
                training={"steps": options.steps},
                rollout={"num_servers": 2},
                checkpoint={"every_steps": 5},
                evaluation={"every_steps": None},
            )
        )
        with closing(Chaos(client, Path(folder), run.id, options.steps)) as chaos:
            chaos.do_all(actions)
            ended = finish(client, run.id)
        faults = ledger_faults(client, run.id, num_training_steps=options.steps)
        for evaluation in client.evaluations(run.id):
            print(f"avg@{evaluation.num_samples} after step {evaluation.step}: {evaluation.accuracy:.3f}")
        print(
            f"{chaos.num_done} of {len(actions)} kills, joins and leaves; "
            f"run {ended.state} at step {ended.step} after {time.monotonic() - started:.0f} s"
        )
        print(f"ledger: {ended.groups}")
    if chaos.num_done < len(actions):
        faults.append("the run ended before everything was done to it; give it more --steps")
    for fault in faults:
        print(f"FAULT: {fault}")
    return int(bool(faults) or ended.state != "succeeded")


if __name__ == "__main__":
    sys.exit(main())

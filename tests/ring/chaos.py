"""A run under SIGKILLs, with servers that join and leave, and what must hold afterwards.

python -m tests.ring.chaos [--steps 60] [--kills 30] [--seed 0]        the long form, `make chaos`
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from services.contracts.records import Evaluation, Run
from services.contracts.states import TERMINAL_STATES
from tests.ring.audit import Auditor
from tests.ring.deployment import joined, kill, service
from tools.deployment import demo_config, deployment, finish, patiently
from turnout import Client

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
    dropped = sum(count for name, count in groups.items() if name == "replaced" or name.startswith("dropped_"))
    if groups.get("trained") != num_training_steps * prompts_per_step:
        faults.append(f"{groups.get('trained')} groups trained, not {num_training_steps * prompts_per_step}")
    if groups.get("fed") != groups.get("trained", 0) + dropped + groups.get("in_flight", 0):
        faults.append(f"ledger does not balance: {groups}")
    return faults


class Chaos:
    """Kills instances of a deployment, lets others join and leave, each after the run has made progress since the last.

    `close` it: it ends the servers that have joined and not left.
    """

    def __init__(
        self,
        client: Client,
        home: Path,
        run_id: str,
        num_training_steps: int,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """`look` is called again and again while the next action is waited for."""
        self.client = client
        self.home = home
        self.run_id = run_id
        self.num_training_steps = num_training_steps
        self.done: list[Action] = []
        self._look = look
        self._joined: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    def do_all(self, actions: Sequence[Action]) -> None:
        """Do each in turn, spread evenly over the run's steps; ends early where the run does."""
        for number, action in enumerate(actions):
            due = 1 + number * (self.num_training_steps - 2) // len(actions)
            run = self._once_at(due)
            if run.state in TERMINAL_STATES:
                return
            where = f"step {run.step} of {self.num_training_steps}"
            print(f"{where}: {action.verb} {action.instance} ({number + 1} of {len(actions)})", flush=True)
            getattr(self, action.verb)(action.instance)
            self.done.append(action)

    def _once_at(self, due: int) -> Run:
        """The run, once it has made `due` steps or has ended."""

        def ask() -> Run:
            self._look()
            return self.client.run(self.run_id)

        run: Run = patiently(ask, lambda run: run.step >= due or run.state in TERMINAL_STATES)
        return run

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
        """SIGTERM to a server that joined: it shuts down cleanly and disappears from the list. It is not restarted."""
        process = self._joined[instance]
        process.terminate()
        assert process.wait(60) == 0
        patiently(lambda: self.client.services(), lambda found: instance not in {record.instance for record in found})

    def vanish(self, instance: str) -> None:
        """SIGKILL to a server that joined. It is not restarted."""
        self._joined[instance].kill()


def long_form(num_kills: int, chance: random.Random) -> list[Action]:
    """Kills of all instances in random order; between them two servers join: one leaves in order, one vanishes."""
    actions = [Action("kill", INSTANCES[number % len(INSTANCES)]) for number in range(num_kills)]
    chance.shuffle(actions)
    changes = [("join", "rollout-1"), ("leave", "rollout-1"), ("join", "rollout-2"), ("vanish", "rollout-2")]
    for number, (verb, instance) in enumerate(changes):
        actions.insert((number + 1) * (num_kills + 4) // 5, Action(verb, instance))
    return actions


def report(client: Client, runs: Sequence[Run], chaos: Chaos, auditor: Auditor, seconds: float) -> str:
    """A Markdown section: what was done to the second of `runs`, its ledger, and its accuracy next to the first's."""
    calm, run = runs
    groups = run.groups
    done: dict[str, Counter[str]] = defaultdict(Counter)
    for action in chaos.done:
        done[action.instance][action.verb] += 1
    lines = [
        f"{run.step} steps in {seconds:.0f} s under {len(chaos.done)} kills, joins and leaves; run {run.state}.",
        "",
        "| instance | SIGKILL while it served | joined | left cleanly | SIGKILL without restart |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {counts['kill']} | {counts['join']} | {counts['leave']} | {counts['vanish']} |"
            for name, counts in sorted(done.items())
        ),
        "",
        "| groups | |",
        "|---|---:|",
        *(f"| {name.replace('_', ' ')} | {count} |" for name, count in groups.items()),
        f"| on two streams, or lost, at one of {auditor.num_looks} looks | {len(auditor.faults)} |",
        "",
        "| accuracy on unseen questions (avg@n, with its standard error) | undisturbed | under faults |",
        "|---|---:|---:|",
    ]
    for before, after in zip(client.evaluations(calm.id), client.evaluations(run.id), strict=True):
        shown = (f"{item.accuracy:.3f} ± {standard_error(item):.3f}" for item in (before, after))
        lines.append(f"| after step {before.step} (n = {before.num_samples}) | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def standard_error(evaluation: Evaluation) -> float:
    """Of the accuracy, by its questions; samples of one question do not count as independent."""
    return math.sqrt(evaluation.accuracy * (1 - evaluation.accuracy) / evaluation.num_questions)


def accuracy_faults(client: Client, calm: Run, run: Run) -> list[str]:
    """Empty where both runs' last accuracies differ by no more than chance: three standard errors of a difference."""
    first, second = list(client.evaluations(calm.id))[-1], list(client.evaluations(run.id))[-1]
    allowed = 3 * math.hypot(standard_error(first), standard_error(second))
    if abs(first.accuracy - second.accuracy) <= allowed:
        return []
    return [f"accuracy {second.accuracy:.3f} is not that of the undisturbed run, {first.accuracy:.3f}"]


def main() -> int:
    """The long form: an undisturbed run, then the same under faults. Prints a report; exit code 1 where the ledger does
    not balance, the run does not succeed, or its accuracy differs by more than chance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    actions = long_form(options.kills, random.Random(options.seed))
    config = demo_config(
        training={"steps": options.steps},
        rollout={"num_servers": 2},
        checkpoint={"every_steps": 5},
        evaluation={"every_steps": None},
    )
    all_groups = options.steps * config["training"]["prompts_per_step"]
    with tempfile.TemporaryDirectory(prefix="turnout-chaos-") as folder, deployment(Path(folder)) as client:
        print(f"an undisturbed run of {options.steps} steps ...", flush=True)
        calm = finish(client, client.create_run(config).id)
        print(f"run {calm.state}; now the same with {len(actions)} kills, joins and leaves ...", flush=True)
        started = time.monotonic()
        run = client.create_run(config)
        auditor = Auditor(client, Path(folder), run.id, checkpoint_groups=40, all_groups=all_groups)
        with closing(Chaos(client, Path(folder), run.id, options.steps, auditor.look)) as chaos:
            chaos.do_all(actions)
            ended = finish(client, run.id)
        seconds = time.monotonic() - started
        faults = ledger_faults(client, run.id, num_training_steps=options.steps)
        faults += auditor.faults + accuracy_faults(client, calm, ended)
        print("\n" + report(client, (calm, ended), chaos, auditor, seconds) + "\n")
    if len(chaos.done) < len(actions):
        faults.append("the run ended before everything was done to it; give it more --steps")
    if ended.state != "succeeded":
        faults.append(f"the run {ended.state}: {ended.reason}")
    for fault in faults:
        print(f"FAULT: {fault}")
    print("Nothing lost, nothing twice." if not faults else f"{len(faults)} faults.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

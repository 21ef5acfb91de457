"""Does an evaluation alongside a training run slow it down, and does a crash change its results?

Two rollout servers: the run has one, evaluations the other. Steps without and with an evaluation alternate in rounds of
one run, so that other load on the machine meets both. Then an evaluation is disturbed: SIGKILL to the API and to its
rollout server while it samples. Its results must be those of an undisturbed one, question by question.

Short form: `--rounds 2 --seconds 15`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._runs import table
from services.contracts.records import ModelEvaluation
from tools.deployment import demo_config, deployment, finish, patiently
from turnout import Client
from turnout.cli.local.processes import find, read_state

GOAL = 0.95
ENDLESS = 100_000
UNENDED = ("queued", "running")


def main() -> None:
    """Measure and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each half of a round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder:
        home = Path(folder)
        with deployment(home, options=["--rollout-servers", "2"]) as client:
            undisturbed = ended(client, evaluate(client))
            run = client.create_run(
                demo_config(training={"steps": ENDLESS}, evaluation={"every_steps": None, "before_training": False})
            )
            patiently(lambda: client.run(run.id), lambda found: found.step >= 3)
            pairs = [one_round(client, run.id, options.seconds, number) for number in range(options.rounds)]
            disturbed = disturb(client, home)
            before, after = questions(client, undisturbed), questions(client, disturbed)
            differing = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
            client.stop(run.id, now=True)
            finish(client, run.id)
    show(pairs, len(differing), disturbed)


def evaluate(client: Client, **changes: Any) -> ModelEvaluation:
    """Start an evaluation of the demo's untrained policy."""
    config = demo_config()
    limits = {name: config["rollout"][name] for name in ("max_prompt_tokens", "max_response_tokens")}
    asked = {"num_samples": 16, "max_questions": 200, **changes.pop("evaluation", {})}
    request = {"model": config["model"], "data": {"validation": config["data"]["validation"]}}
    return client.create_evaluation(request | {"rollout": limits, "evaluation": asked} | changes)


def ended(client: Client, evaluation: ModelEvaluation) -> ModelEvaluation:
    found: ModelEvaluation = patiently(
        lambda: client.evaluation(evaluation.id), lambda found: found.state not in UNENDED
    )
    assert found.state == "succeeded", found.reason
    return found


def one_round(client: Client, run_id: str, seconds: float, number: int) -> tuple[float, float]:
    """Steps per second without an evaluation, and with one."""
    without = steps_per_second(client, run_id, seconds)
    alongside = evaluate(client, seed=number, evaluation={"num_samples": 64, "max_questions": 256})
    patiently(lambda: client.evaluation(alongside.id), lambda found: found.num_done > 0)
    with_one = steps_per_second(client, run_id, seconds)
    assert client.evaluation(alongside.id).state == "running", "the evaluation ended too early to be measured"
    client.cancel_evaluation(alongside.id)
    print(f"  round {number}: {without:.2f}, {with_one:.2f} steps/s; load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return without, with_one


def steps_per_second(client: Client, run_id: str, seconds: float) -> float:
    """Speed over `seconds`. A median of steps would not do: the run is asynchronous, and its steps come in pairs."""
    begun, first = time.monotonic(), client.run(run_id).step
    time.sleep(seconds)
    return (client.run(run_id).step - first) / (time.monotonic() - begun)


def disturb(client: Client, home: Path) -> ModelEvaluation:
    """An evaluation that survives the death of the API and of its rollout server."""
    made = evaluate(client)
    done = patiently(lambda: client.evaluation(made.id), lambda found: found.num_done >= 20)
    kill(home, "api-0")
    again = patiently(lambda: client.evaluation(made.id), lambda found: True)
    assert again.num_done >= done.num_done, "partial results survive"
    busy = patiently(lambda: client.evaluation(made.id), lambda found: found.num_done >= again.num_done + 20)
    assert busy.state == "running"
    kill(home, busy.rollout_servers[0])
    return ended(client, made)


def kill(home: Path, instance: str) -> None:
    """SIGKILL to an instance, which its supervisor starts again."""
    state = read_state(home)
    assert state is not None
    process = next(found for record in state.everything if record.instance == instance and (found := find(record)))
    process.kill()


def questions(client: Client, evaluation: ModelEvaluation) -> list[tuple[Any, ...]]:
    return [
        (item.set, item.number, item.num_samples, item.num_correct, item.response_tokens)
        for item in client.evaluated_questions(evaluation.id)
    ]


def show(pairs: list[tuple[float, float]], num_differing: int, disturbed: ModelEvaluation) -> None:
    """Print the section."""
    ratio = median(with_one / without for without, with_one in pairs)
    print("## An evaluation alongside a run\n")
    print(f"Steps per second with an evaluation over those without: {ratio:.2f} (goal: at least {GOAL}).\n")
    rows = [[str(n), f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}"] for n, (a, b) in enumerate(pairs)]
    print(table(["round", "steps/s without", "with", "ratio"], rows))
    print(
        f"\nAfter SIGKILL to the API and to its rollout server, {disturbed.num_done} of {disturbed.num_questions} "
        f"questions are judged, and {num_differing} differ from the undisturbed evaluation."
    )


if __name__ == "__main__":
    main()

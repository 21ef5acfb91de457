"""What queue and codec cost: their share of a training step, for the demo's groups and for groups of 8 x 8192 tokens.

The demo's step is timed on a whole deployment in the same run. The long step is not trained here: its time is that of
the paper on 8 H20 GPUs, named as such.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import _hops
from benchmarks._runs import table
from tests.ring.deployment import demo_config, deployment, finish

GOAL = 0.01
PAPER_STEP_SECONDS, PAPER_PROMPTS = 75.8, 32
"""SRPO, Qwen3-8B, up to 8192 tokens (arXiv 2604.02288)."""


def main() -> None:
    """Measure and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--groups", type=int, default=400, help="groups of the short kind; the long kind takes a tenth")
    options = parser.parse_args()
    with _hops.valkey() as url:
        short = _hops.measure(url, 64, options.groups)
        long = _hops.measure(url, 8192, max(8, options.groups // 10))
    print(f"  queue measured: {short.wire_bytes} and {long.wire_bytes} bytes a group", file=sys.stderr, flush=True)
    step_seconds, prompts = demo_step(options.steps)
    print("## Queue and codec as a share of a step\n")
    print(
        "One group's way through real Valkey (append-only file, synced before each answer), hop by hop, nothing else "
        "running. CPU milliseconds a group; each hop encodes or decodes the whole message.\n"
    )
    head = ["hop", "service"]
    for journey in (short, long):
        head += [f"8 x {journey.tokens} client", "Valkey", "wall"]
    rows = []
    for one, other in zip(short.hops, long.hops, strict=True):
        cells = [one.name, one.service]
        for hop in (one, other):
            cells += [f"{value * 1e3:.3f}" for value in (hop.client_seconds, hop.server_seconds, hop.wall_seconds)]
        rows.append(cells)
    print(table(head, rows))
    print(f"\nA scored group has {short.wire_bytes} and {long.wire_bytes} bytes on the wire.")
    print(
        "Share of a step, as CPU seconds over the step's. Only the learner's side lies within a step, and it runs "
        "in a thread beside training; the others work on other groups meanwhile. Responses of the demo have about 28 "
        "tokens, so 64 is more than it pays.\n"
    )
    rows = [
        share(short, "the demo's (measured)", step_seconds, prompts),
        share(long, "the paper's, every response at 8192 tokens", PAPER_STEP_SECONDS, PAPER_PROMPTS),
    ]
    print(
        table(["step", "seconds", "groups", f"learner's side (goal {GOAL:.0%})", "all services", "with Valkey"], rows)
    )


def demo_step(steps: int) -> tuple[float, int]:
    """Seconds and groups of the demo's median step."""
    quiet = {"every_steps": None, "before_training": False, "after_training": False}
    settings = demo_config(name="overhead", training={"steps": steps}, evaluation=quiet)
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder, deployment(Path(folder)) as client:
        run = client.create_run(settings)
        ended = finish(client, run.id)
        if ended.state != "succeeded":
            raise SystemExit(f"run {run.id} is {ended.state}: {ended.reason}")
        seconds = sorted(step.metrics["seconds"] for step in client.steps(run.id))
    return seconds[len(seconds) // 2], int(settings["training"]["prompts_per_step"])


def share(journey: _hops.Journey, name: str, seconds: float, groups: int) -> list[str]:
    learner = journey.client_seconds("learner") * groups / seconds
    clients = sum(journey.client_seconds(service) for service in ("learner", "rollout", "verifier")) * groups / seconds
    server = journey.server_seconds * groups / seconds
    cells = [f"{value:.2%}" for value in (learner, clients, clients + server)]
    return [name, f"{seconds:.2f}", str(groups), *cells]


if __name__ == "__main__":
    main()

"""What queue and codec cost: their share of a training step, for the demo's groups and for groups of 8 x 8192 tokens.

The demo's step is timed on a whole deployment in the same run, where the groups that share a round trip are counted as
well: as many travel together here. The long step is not trained here: its time is that of the paper on 8 H20 GPUs,
named as such, and its groups travel alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import redis

from benchmarks import _hops
from benchmarks._runs import table
from tools.deployment import demo_config, deployment, finish
from turnout.cli.local.processes import read_state

GOAL = 0.01
PAPER_STEP_SECONDS, PAPER_PROMPTS = 75.8, 32
"""SRPO, Qwen3-8B, up to 8192 tokens (arXiv 2604.02288)."""


def main() -> None:
    """Measure and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--groups", type=int, default=400, help="groups of the short kind; the long kind takes a tenth")
    options = parser.parse_args()
    step_seconds, prompts, together = demo_step(options.steps)
    print(f"  a step takes {step_seconds:.2f} s, {together:.1f} groups together", file=sys.stderr, flush=True)
    with _hops.valkey() as url:
        short = _hops.measure(url, 64, options.groups, max(1.0, together))
        long = _hops.measure(url, 8192, max(8, options.groups // 10), 1)
    print("## Queue and codec as a share of a step\n")
    print(
        "Groups pass through real Valkey (append-only file, synced before each reply), hop by hop, with nothing else "
        "running. Figures are CPU milliseconds per group; each hop encodes or decodes the whole message. Groups that "
        f"are ready together share a round trip, {together:.1f} of them in the demo's run. Here the same number of "
        "short groups shares one, and long groups travel alone. In the last line verifier and learner wait for what "
        "the one before them publishes, as in a run: Valkey then syncs its file for writer and reader together.\n"
    )
    print(hops_table(short, long))
    print(f"\nA scored group has {short.wire_bytes} and {long.wire_bytes} bytes on the wire.")
    print(
        "Share of a step, as CPU seconds relative to the step's seconds; the learner's side is the sum of its hops, "
        "all services the whole way. Only the learner's side is within a step, and it runs in a thread alongside "
        "training; the others work on other groups meanwhile. The demo's responses have about 28 tokens, so 64 "
        "overstates its cost.\n"
    )
    rows = [
        share(short, "the demo's (measured)", step_seconds, prompts),
        share(long, "the paper's, every response at 8192 tokens", PAPER_STEP_SECONDS, PAPER_PROMPTS),
    ]
    print(
        table(["step", "seconds", "groups", f"learner's side (goal {GOAL:.0%})", "all services", "with Valkey"], rows)
    )


def hops_table(short: _hops.Journey, long: _hops.Journey) -> str:
    head = ["hop", "service"]
    for journey in (short, long):
        head += [f"8 x {journey.tokens} client", "Valkey", "wall"]
    rows = []
    for one, other in zip([*short.hops, short.whole], [*long.hops, long.whole], strict=True):
        cells = [one.name, one.service]
        for hop in (one, other):
            cells += [f"{value * 1e3:.3f}" for value in (hop.client_seconds, hop.server_seconds, hop.wall_seconds)]
        rows.append(cells)
    return table(head, rows)


def demo_step(steps: int) -> tuple[float, int, float]:
    """Seconds and groups of the demo's median step, and groups published a round trip."""
    quiet = {"every_steps": None, "before_training": False, "after_training": False}
    settings = demo_config(name="overhead", training={"steps": steps}, evaluation=quiet)
    prompts = int(settings["training"]["prompts_per_step"])
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder, deployment(Path(folder)) as client:
        run = client.create_run(settings)
        ended = finish(client, run.id)
        if ended.state != "succeeded":
            raise SystemExit(f"run {run.id} is {ended.state}: {ended.reason}")
        seconds = sorted(step.metrics["seconds"] for step in client.steps(run.id))
        scripts = num_scripts(Path(folder))
    return seconds[len(seconds) // 2], prompts, 2 * prompts * steps / (scripts - steps)


def num_scripts(home: Path) -> int:
    """Scripts that the deployment's server has run: one for each step's feeding, the others publish groups, which both
    rollout server and verifier do."""
    state = read_state(home)
    assert state is not None
    with redis.Redis.from_url(state.redis_url) as server:
        commands: dict[str, dict[str, int]] = server.info("commandstats")
    return commands["cmdstat_eval"]["calls"]


def share(journey: _hops.Journey, name: str, seconds: float, groups: int) -> list[str]:
    """One line: what so many groups cost, over the step's seconds."""
    whole = journey.whole
    costs = journey.client_seconds("learner"), whole.client_seconds, whole.client_seconds + whole.server_seconds
    return [name, f"{seconds:.2f}", str(groups), *(f"{cost * groups / seconds:.2%}" for cost in costs)]


if __name__ == "__main__":
    main()

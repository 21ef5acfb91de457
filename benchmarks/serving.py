"""A run's speed while its policy is asked: windows with no client, with people and with programs alternate.

The clients run in this process and share the machine's cores with the run, so what they cost themselves is told too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.deployment import demo_config, deployment, patiently
from turnout import AsyncClient, Client

QUESTIONS = (
    "Total tonnes of copper, coal?",
    "Total tonnes of kelp, wool?",
    "Total tonnes of barley, salt?",
    "Total tonnes of tin?",
)
KINDS = {"no client": None, "people": 5.0, "programs": 0.0}
"""Who asks, and the seconds between an answer and the next question."""


@dataclass(slots=True)
class Window:
    """What happened while one kind of client asked, over all its windows."""

    seconds: float = 0.0
    num_steps: int = 0
    num_answers: int = 0
    num_tokens: int = 0
    own_seconds: float = 0.0
    """CPU time of this process."""
    load: float = 0.0
    """The machine's load average at the end of each window, summed."""


async def stream(client: AsyncClient, run_id: str, number: int, pause: float, seen: Window) -> None:
    """Ask until cancelled."""
    while True:
        async for chunk in client.chat(run_id, QUESTIONS[number % len(QUESTIONS)]):
            seen.num_tokens += sum(bool(choice["delta"].get("content")) for choice in chunk.get("choices", ()))
        seen.num_answers += 1
        await asyncio.sleep(pause)


async def window(url: str, run_id: str, pause: float | None, options: argparse.Namespace, seen: Window) -> None:
    async with AsyncClient(url) as client:
        asking = [
            asyncio.create_task(stream(client, run_id, number, pause, seen))
            for number in range(options.streams)
            if pause is not None
        ]
        own = time.process_time()
        await asyncio.wait(asking, timeout=options.seconds) if asking else await asyncio.sleep(options.seconds)
        seen.own_seconds += time.process_time() - own
        for task in asking:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


def measure(client: Client, run_id: str, options: argparse.Namespace) -> dict[str, Window]:
    """All windows, in turn."""
    found = {kind: Window() for kind in KINDS}
    for _ in range(options.rounds):
        for kind, pause in KINDS.items():
            seen = found[kind]
            before, began = client.run(run_id).step, time.time()
            asyncio.run(window(client.url, run_id, pause, options, seen))
            ended = time.time()
            seen.num_steps += sum(began <= step.at < ended for step in client.steps(run_id, after=before))
            seen.seconds += ended - began
            seen.load += os.getloadavg()[0]
    return found


def rows(found: dict[str, Window], options: argparse.Namespace) -> Iterator[list[str]]:
    free = found["no client"].num_steps / found["no client"].seconds
    for kind, seen in found.items():
        speed = seen.num_steps / seen.seconds
        yield [
            kind,
            f"{speed:.2f}",
            f"{speed / free:.2f}",
            f"{seen.num_answers}",
            f"{seen.num_tokens / seen.seconds:.0f}",
            f"{seen.own_seconds / seen.seconds:.2f}",
            f"{seen.load / options.rounds:.1f}",
        ]


def main() -> None:
    """Print the section; `--rounds` and `--seconds` shorten it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6, help="windows of each kind")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a window")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder, deployment(Path(folder)) as client:
        switches = {"every_steps": None, "before_training": False, "after_training": False}
        run_id = client.create_run(demo_config(training={"steps": 100_000}, evaluation=switches)).id
        patiently(lambda: client.run(run_id).step, lambda step: step >= 20)  # warm
        for _ in client.chat(run_id, QUESTIONS[0], max_tokens=1):
            pass  # the first request imports vLLM's serving classes
        found = measure(client, run_id, options)
        client.stop(run_id, now=True)
    print("## Talking to the policy\n")
    print(
        f"The demo's run, {options.rounds} times {options.seconds:.0f} s each: no client; {options.streams} people "
        f"ask, 5 s after each answer; {options.streams} programs ask without a pause. Answers are streamed. "
        "The clients' CPU time also takes from the run's.\n"
    )
    print("| who asks | steps a second | relative to no client | answers | tokens a second | clients' cores | load |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in rows(found, options):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()

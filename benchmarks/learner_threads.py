"""Seconds of one optimizer update by number of threads and size of the model, on otherwise idle cores.

`python -m benchmarks.learner_threads [--threads 1 2] [--repeats 3]`: 8 groups of 8 rollouts with SRPO, as in
`learner_step`, float32. Sizes run from the embedded policy to SmolLM2-135M's shape.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch

from benchmarks.learner_step import PlainEngine, batch, config
from services.learner.update.update import run_minibatch

SHAPES = {
    "embedded policy": (150, 96, 2, 256),
    "256 wide, 4 layers": (4096, 256, 4, 768),
    "384 wide, 8 layers": (8192, 384, 8, 1024),
    "512 wide, 12 layers": (16384, 512, 12, 1408),
    "SmolLM2-135M": (49152, 576, 30, 1536),
}
"""Vocabulary, width, layers, width of the MLP."""
FAILED = 0.2
VOCABULARY = 150
"""Of the tokens that occur."""


def seconds(shape: tuple[int, int, int, int], threads: list[int], repeats: int) -> tuple[int, list[float]]:
    """Parameters, and the median of each number of threads; all of them in turn."""
    engine, run = PlainEngine(*shape), config("srpo")
    sequences = batch(run.objective, FAILED, VOCABULARY)
    times: dict[int, list[float]] = {count: [] for count in threads}
    for number in range(1 + repeats):
        for count in threads:
            torch.set_num_threads(count)
            started = time.perf_counter()
            run_minibatch(engine, sequences, None, run)
            if number:
                times[count].append(time.perf_counter() - started)
    parameters = sum(parameter.numel() for parameter in engine.student.parameters())
    return parameters, [statistics.median(times[count]) for count in threads]


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    first = arguments.threads[0]
    print(
        "## One optimizer update by number of threads\n\n"
        f"SRPO, 64 rollouts of 20 to 40 tokens, {FAILED:.0%} failed, float32, wall-clock seconds; medians of "
        f"{arguments.repeats}, all numbers of threads in turn. In brackets: times as fast as with "
        f"{_threads(first)}.\n\n"
        f"| model | parameters | {' | '.join(_threads(count) for count in arguments.threads)} |\n"
        f"|---|---:|{'---:|' * len(arguments.threads)}"
    )
    for name, shape in SHAPES.items():
        parameters, medians = seconds(shape, arguments.threads, arguments.repeats)
        cells = [f"{value:.3f} ({medians[0] / value:.2f})" for value in medians]
        print(f"| {name} | {parameters / 1e6:.1f} million | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Step time against the number of tokens and against the vocabulary.

`python -m benchmarks.learner_scaling [--repeats 5]`: SRPO updates as in `learner_step`, with lengths multiplied (so
attention grows faster than the rest) or with a larger vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Final

import torch

from benchmarks.learner_step import WARMUPS, PlainEngine, batch, config
from services.learner.update.update import run_minibatch

CASES: Final = [(1, 150), (2, 150), (4, 150), (1, 1500), (1, 15_000), (1, 60_000)]
"""Factor of the lengths, vocabulary."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = config("srpo")
    engines = {case: PlainEngine(case[1]) for case in CASES}
    sequences = {(scale, size): batch(run.objective, 0.4, size, scale) for scale, size in CASES}
    seconds: dict[tuple[int, int], list[float]] = {case: [] for case in CASES}
    tokens = {}
    for number in range(WARMUPS + arguments.repeats):
        for case in CASES:
            started = time.process_time()
            report = run_minibatch(engines[case], sequences[case], None, run)
            tokens[case] = report.sums["num_tokens"]
            if number >= WARMUPS:
                seconds[case].append(time.process_time() - started)
    medians = {case: statistics.median(rows) for case, rows in seconds.items()}
    print(
        "## Step time by tokens and by vocabulary\n\n"
        "SRPO, 64 rollouts of which 40% failed, a Qwen3 of two layers and hidden size 96, one thread, plain AdamW; "
        f"cases in turn, medians of {arguments.repeats} in CPU seconds.\n\n"
        "| response tokens | vocabulary | CPU seconds | relative to the first | microseconds a token |\n"
        "|---:|---:|---:|---:|---:|"
    )
    for case in CASES:
        print(
            f"| {tokens[case]:.0f} | {case[1]} | {medians[case]:.3f} | {medians[case] / medians[CASES[0]]:.2f} | "
            f"{1e6 * medians[case] / tokens[case]:.0f} |"
        )


if __name__ == "__main__":
    main()

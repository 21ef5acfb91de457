"""Peak memory of an update's logits: measured against full float32 logits of student and teacher with gradients.

`python -m benchmarks.learner_memory [--vocabulary 151936] [--tokens 4096]` trains one sequence of that many response
tokens (SDPO branch, top 100) with a model of tiny hidden size, so that nearly all memory is the vocabulary's. Each case
runs in a process of its own; figures are the process's peak resident memory above what it held with model, optimizer
state and gradients in place. The comparison is 4 arrays of tokens x vocabulary x 4 bytes: student logits, teacher
logits and the gradient of each; 3 arrays where only the student's gradient is counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import time

import torch

from benchmarks.learner_step import PlainEngine, config
from services.learner.packing.sequence import TrainSequence
from services.learner.update.update import run_minibatch

MIB = 2**20


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sequence(tokens: int, vocabulary: int, route: str) -> TrainSequence:
    rng = random.Random(0)
    prompt, response = ([rng.randrange(vocabulary) for _ in range(count)] for count in (8, tokens))
    taught = prompt if route == "sdpo" else None
    return TrainSequence(prompt, response, [-10.0] * tokens, 0.5, route, taught)  # type: ignore[arg-type]


def case(vocabulary: int, tokens: int, route: str, result: multiprocessing.Queue[tuple[float, float]]) -> None:
    """Bytes above the model and its gradients, and CPU seconds."""
    torch.set_num_threads(1)
    engine, run = PlainEngine(vocabulary, hidden=32), config("srpo")
    run_minibatch(engine, [sequence(2, vocabulary, route)], None, run)  # optimizer state, gradients
    before, started = peak_bytes(), time.process_time()
    run_minibatch(engine, [sequence(tokens, vocabulary, route)], None, run)
    result.put((peak_bytes() - before, time.process_time() - started))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--tokens", type=int, default=4096)
    arguments = parser.parse_args()
    one = arguments.vocabulary * arguments.tokens * 4
    print(
        "## Peak memory of an update's logits\n\n"
        f"One response of {arguments.tokens} tokens, vocabulary {arguments.vocabulary} (Qwen3's is 151936), float32, "
        "hidden size 32, one thread; each case in a separate process. Peak resident memory above model, gradients "
        "and optimizer state, relative to whole float32 logits of student and teacher with a gradient each "
        f"(4 arrays of {one / MIB:.0f} MiB), and with the student's gradient only (3 arrays).\n\n"
        "| branch | MiB | of 4 arrays | of 3 arrays | CPU seconds |\n|---|---:|---:|---:|---:|"
    )
    context = multiprocessing.get_context("spawn")
    for route in ("grpo", "sdpo"):
        result = context.Queue()
        process = context.Process(target=case, args=(arguments.vocabulary, arguments.tokens, route, result))
        process.start()
        used, seconds = result.get()
        process.join()
        print(f"| {route} | {used / MIB:.0f} | {used / (4 * one):.1%} | {used / (3 * one):.1%} | {seconds:.1f} |")


if __name__ == "__main__":
    main()

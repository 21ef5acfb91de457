"""Tokens a second of the rollout engine with the embedded policy, by settings, as ratios within one run.

`python -m benchmarks.rollout [--sequences 64 256] [--tokens 64] [--rounds 5] [--model FOLDER]` prints a table. Every
setting runs in a process of its own (settings act at import), one after the other; `start` is from the process's begin
to an engine that can sample, `update` the four phases of a weight update with requests in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.rollout.vllm.server import EngineServer

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, dict[str, str]] = {
    "chosen": {},
    "worker in its own process": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
    "two OpenMP threads": {"OMP_NUM_THREADS": "2"},
    "one request per sample": {"BENCHMARK_SINGLE": "1"},
    "vLLM's scheduler": {"BENCHMARK_SCHEDULER": "vllm.v1.core.sched.scheduler.Scheduler"},
}


async def measure(model: str, num_sequences: int, num_tokens: int, rounds: int, began: float) -> dict[str, float]:
    """One setting: start seconds, median tokens a second, median seconds of an update in flight."""
    from services.rollout.environment import import_vllm
    from services.rollout.vllm import engine as engines
    from services.rollout.vllm.server import EngineServer

    import_vllm()
    engines.SCHEDULER = os.environ.get("BENCHMARK_SCHEDULER", engines.SCHEDULER)
    spec = engines.EngineSpec(model, "float32", 192, num_sequences, 0, False)
    engine = await asyncio.to_thread(engines.build, spec)
    start_seconds = time.time() - began
    server = EngineServer()
    await server.attach(engine, "bench")
    await server.resume_generation()
    sample = sampling(server, num_sequences, num_tokens)
    await sample()
    speeds = [await sample() for _ in range(rounds)]
    updates = await update_in_flight(server, model, rounds, sample)
    server.detach()
    await asyncio.to_thread(engines.end, engine)
    return {
        "start": start_seconds,
        "speed": statistics.median(speeds),
        "update": statistics.median(updates),
    }


def sampling(server: EngineServer, num_sequences: int, num_tokens: int) -> Callable[[], Awaitable[float]]:
    """A function that samples all sequences at once and returns tokens a second."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    group = 1 if os.environ.get("BENCHMARK_SINGLE") else 8
    params = SamplingParams(
        n=group,
        max_tokens=num_tokens,
        ignore_eos=True,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )

    async def sample() -> float:
        began = time.perf_counter()
        prompts = [[3 + (index // 8 + i) % 60 for i in range(24)] for index in range(0, num_sequences, group)]
        await asyncio.gather(*[server.generate(prompt, params) for prompt in prompts])
        return num_sequences * num_tokens / (time.perf_counter() - began)

    return sample


async def update_in_flight(
    server: EngineServer, model: str, rounds: int, sample: Callable[[], Awaitable[float]]
) -> list[float]:
    """Seconds of each weight update, all during a call of `sample`."""
    from services.runtime.weights.store import WeightStore

    weights = (Path(model) / "model.safetensors").read_bytes()
    seconds = []

    def write(target: Path) -> None:
        (target / "model.safetensors").write_bytes(weights)

    with tempfile.TemporaryDirectory() as folder:
        store = WeightStore(Path(folder), "bench")
        for version in range(1, rounds + 1):
            manifest = store.publish(version, write)
            flying = asyncio.ensure_future(sample())
            await asyncio.sleep(0.05)
            began = time.perf_counter()
            await server.load(version, str(store.path(version)), manifest.checksum)
            seconds.append(time.perf_counter() - began)
            await flying
    return seconds


def child(options: argparse.Namespace) -> None:
    from services.rollout.environment import prepare

    prepare()
    began = float(os.environ["BENCHMARK_BEGAN"])
    result = asyncio.run(measure(options.model, options.sequences[0], options.tokens, options.rounds, began))
    print("RESULT " + json.dumps(result), flush=True)


def run_child(options: argparse.Namespace, num_sequences: int, settings: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.rollout", "--child", "--sequences", str(num_sequences)]
    command += ["--tokens", str(options.tokens), "--rounds", str(options.rounds), "--model", options.model]
    environment = {**os.environ, **settings, "BENCHMARK_BEGAN": str(time.time())}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"The engine did not run with {settings}:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(lines[0].removeprefix("RESULT "))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default=str(ROOT / "examples" / "embedded" / "policy"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    print("## Rollout engine\n")
    print(
        f"Embedded policy, {options.tokens} tokens per sequence in groups of 8; medians of {options.rounds} rounds.\n"
    )
    print("| settings | sequences | token/s | relative to chosen | start, s | update in flight, s |")
    print("|---|---|---|---|---|---|")
    for num_sequences in options.sequences:
        chosen = 0.0
        for name, settings in SETTINGS.items():
            result = run_child(options, num_sequences, settings)
            chosen = chosen or result["speed"]
            print(
                f"| {name} | {num_sequences} | {result['speed']:.0f} | {result['speed'] / chosen:.2f} "
                f"| {result['start']:.1f} | {result['update']:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Time to bring a rollout engine to new weights, by phase, against the time to copy the same bytes.

`python -m benchmarks.weight_push [--rounds 5] [--folders DISK /dev/shm] [--models ...]` prints a table: random models
in bfloat16 (a small Qwen3, one of Qwen3-0.6B's shape) in each folder, and the demo's policy. The engine decodes
meanwhile, as in a run.
`publish` is the learner's side, during training. The push is the server's: prepare (verify, while it samples), pause
(until the decoding step in flight has ended), start, update (load), finish, resume. Sampling stands still for all but
`prepare`. `copy` copies the published files into new ones in the same folder, unsynced. `packing` is a part of update
that only CPUs have: the time of oneDNN's packing alone for the same matrices. What is ours is the push without it and
without the pause, in which the engine still decodes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._runs import table
from services.runtime.weights.store import WeightStore

ROOT = Path(__file__).resolve().parent.parent
PHASES = ("prepare", "pause", "start", "update", "finish", "resume")
SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "vocab_size": 16_000,
        "hidden_size": 768,
        "intermediate_size": 2304,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "Qwen3-0.6B": {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
DEMO_POLICY = ROOT / "examples" / "embedded" / "policy"
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would say on standard output that it looked for a GPU


def make_model(folder: Path, shape: dict[str, int]) -> None:
    """A random model with a tokenizer that nothing uses."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**shape, max_position_embeddings=512, tie_word_embeddings=True, dtype="bfloat16")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_POLICY / name, folder)


def copy_seconds(folder: Path) -> float:
    """Copy every published byte once, into new files next to the old ones, without syncing."""
    files = sorted(folder.glob("*.safetensors"))
    with tempfile.TemporaryDirectory(dir=folder.parent) as target:
        started = time.perf_counter()
        for path in files:
            shutil.copyfile(path, Path(target) / path.name)
        return time.perf_counter() - started


def packing_seconds(model: str) -> float:
    """Pack every matrix of the model once, as vLLM's layers do on a CPU; the quickest of three times."""
    from safetensors.torch import load_file
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    matrices = [weight for weight in load_file(Path(model) / "model.safetensors").values() if weight.ndim == 2]
    found = []
    for _ in range(3):
        started = time.perf_counter()
        for matrix in matrices:
            ops.create_onednn_mm(matrix.t(), 32)
        found.append(time.perf_counter() - started)
    return min(found)


async def measure(model: str, folder: str, rounds: int) -> dict[str, float]:
    """Medians over `rounds` of publish, copy and each phase, in seconds; and the bytes."""
    from safetensors.torch import load_file
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    from services.learner.model.export import write_shards
    from services.rollout.environment import import_vllm
    from services.rollout.vllm import engine as engines
    from services.rollout.vllm.server import EngineServer

    import_vllm()
    engine = await asyncio.to_thread(engines.build, engines.EngineSpec(model, "bfloat16", 256, 8, 0, False))
    server = EngineServer()
    await server.attach(engine, "bench")
    await server.resume_generation()
    weights = load_file(Path(model) / "model.safetensors")
    params = SamplingParams(
        n=8, max_tokens=200, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )
    seconds: dict[str, list[float]] = {name: [] for name in ("publish", "copy", *PHASES)}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        store = WeightStore(Path(temporary), "bench")
        for version in range(1, rounds + 2):
            store.collect(1)
            started = time.perf_counter()
            manifest = store.publish(version, lambda target: write_shards(target, weights))
            published = time.perf_counter() - started
            flying = asyncio.create_task(server.generate(list(range(3, 20)), params))
            await asyncio.sleep(0.2)
            phases = await server.load(version, str(store.path(version)), manifest.checksum)
            if version > 1:  # the first round warms up
                for name, value in {"publish": published, "copy": copy_seconds(store.path(version)), **phases}.items():
                    seconds[name].append(value)
            flying.cancel()
    server.detach()
    await asyncio.to_thread(engines.end, engine)
    packing = await asyncio.to_thread(packing_seconds, model)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    # a disk that still writes earlier rounds back can make a copy take five times as long
    copies = {"copy": min(seconds["copy"]), "slowest copy": max(seconds["copy"])}
    return medians | copies | {"packing": packing, "bytes": manifest.bytes}


def run_child(options: argparse.Namespace, model: str, folder: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.weight_push", "--child", model, folder, "--rounds"]
    done = subprocess.run([*command, str(options.rounds)], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"The engine did not run:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(lines[0].removeprefix("RESULT "))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--folders", nargs="+", default=[tempfile.gettempdir(), "/dev/shm"])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        from services.rollout.environment import prepare

        prepare()
        model, folder = options.child
        print("RESULT " + json.dumps(asyncio.run(measure(model, folder, options.rounds))), flush=True)
        return
    print("## Weight push\n")
    measured = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as model:
            make_model(Path(model), SHAPES[name])
            measured += [(name, folder, run_child(options, model, folder)) for folder in options.folders]
    measured.append(("demo", options.folders[0], run_child(options, str(DEMO_POLICY), options.folders[0])))
    print(
        f"bfloat16, the engine decoding; medians of {options.rounds} rounds, in milliseconds. Of the copies, "
        "the fastest is the reference, and the slowest is listed too. The goal is 2 times the copy. The time of a "
        "large copy depends on finding free memory for it: if the two differ a lot, milliseconds say more than "
        "ratios. Push: the phases from prepare to resume; standstill: those in which nothing is sampled, all but "
        "prepare. Packing: oneDNN's, part of the update. Ours: the push without pause and packing.\n"
    )
    names = ("publish", "copy", "slowest copy", *PHASES, "packing")
    head = ["model", "MB", "weights in", *names, "push", "standstill", "push to copy", "ours to copy"]
    rows = []
    for name, folder, result in measured:
        push = sum(result[phase] for phase in PHASES)
        ours = push - result["pause"] - result["packing"]
        row = [name, f"{result['bytes'] / 1e6:.1f}", f"`{folder}`", *(f"{1e3 * result[each]:.1f}" for each in names)]
        row += [f"{1e3 * push:.0f}", f"{1e3 * (push - result['prepare']):.0f}"]
        rows.append([*row, f"{push / result['copy']:.1f}", f"{ours / result['copy']:.1f}"])
    first, *others = [list(line) for line in zip(head, *rows, strict=True)]
    print(table(first, others))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

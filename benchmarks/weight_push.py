"""Time to bring a rollout engine to new weights, by phase, against the time to copy the same bytes.

`python -m benchmarks.weight_push [--layers 12] [--rounds 5] [--folders DISK /dev/shm]` prints a table. The model is a
random Qwen3 in bfloat16 (12 layers: about 230 MB); the engine decodes while it is updated, as in a run. `publish` is
the learner's side, beside training; the push is what a server does without decoding: pause, start, update (verify, then
load), finish, resume. `copy` copies the published files into new ones in the same folder, unsynced.
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
from collections.abc import Awaitable, Callable
from pathlib import Path

from services.runtime.weight_store import Manifest, WeightStore

ROOT = Path(__file__).resolve().parent.parent
PHASES = ("pause", "start", "update", "finish", "resume")
VOCABULARY = 16_000
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would say on standard output that it looked for a GPU


def make_model(folder: Path, num_layers: int) -> None:
    """A random model with a tokenizer that nothing uses."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=num_layers,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    shutil.copy(ROOT / "deploy" / "embedded" / "policy" / "tokenizer.json", folder)
    shutil.copy(ROOT / "deploy" / "embedded" / "policy" / "tokenizer_config.json", folder)


def copy_seconds(folder: Path) -> float:
    """Copy every published byte once, into new files beside the old ones; they are not synced."""
    files = sorted(folder.glob("*.safetensors"))
    with tempfile.TemporaryDirectory(dir=folder.parent) as target:
        started = time.perf_counter()
        for path in files:
            shutil.copyfile(path, Path(target) / path.name)
        return time.perf_counter() - started


async def measure(model: str, folder: str, rounds: int) -> dict[str, float]:
    """Medians over `rounds` of publish, copy and each phase, in seconds; and the bytes."""
    from safetensors.torch import load_file
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    from services.learner.weights import write_shards
    from services.rollout import engine as engines
    from services.rollout.environment import import_vllm
    from services.rollout.server import EngineServer

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
            phases = await push(server, store, manifest)
            if version > 1:  # the first round warms up
                for name, value in {"publish": published, "copy": copy_seconds(store.path(version)), **phases}.items():
                    seconds[name].append(value)
            flying.cancel()
    server.detach()
    await asyncio.to_thread(engines.end, engine)
    return {name: statistics.median(values) for name, values in seconds.items()} | {"bytes": manifest.bytes}


async def push(server: object, store: WeightStore, manifest: Manifest) -> dict[str, float]:
    """One push, timed by phase."""
    from services.rollout.server import EngineServer

    assert isinstance(server, EngineServer)
    info = {"path": str(store.path(manifest.version)), "checksum": manifest.checksum}
    steps: tuple[Callable[[], Awaitable[None]], ...] = (
        server.pause_generation,
        server.start_weight_update,
        lambda: server.update_weights(info),
        lambda: server.finish_weight_update(str(manifest.version)),
        server.resume_generation,
    )
    seconds = {}
    for name, step in zip(PHASES, steps, strict=True):
        started = time.perf_counter()
        await step()
        seconds[name] = time.perf_counter() - started
    return seconds


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
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folders", nargs="+", default=[tempfile.gettempdir(), "/dev/shm"])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        from services.rollout.environment import prepare

        prepare()
        print("RESULT " + json.dumps(asyncio.run(measure(*options.child, options.rounds))), flush=True)
        return
    print("## Weight push\n")
    with tempfile.TemporaryDirectory() as model:
        make_model(Path(model), options.layers)
        results = {folder: run_child(options, model, folder) for folder in options.folders}
    size = next(iter(results.values()))["bytes"] / 1e6
    print(f"{size:.0f} MB in bfloat16, the engine decoding; medians of {options.rounds} rounds, in seconds.\n")
    print(f"| weights in | publish (learner) | copy | {' | '.join(PHASES)} | push | push to copy |")
    print("|" + "---|" * (len(PHASES) + 5))
    for folder, result in results.items():
        total = sum(result[name] for name in PHASES)
        shown = " | ".join(f"{result[name]:.3f}" for name in ("publish", "copy", *PHASES))
        print(f"| `{folder}` | {shown} | {total:.3f} | {total / result['copy']:.1f} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

"""Bytes that the learner holds per parameter, by type, ZeRO stage and ranks, and the formulas of docs/sizing.md.

`python -m benchmarks.learner_state` trains two updates of two micro-batches with the learner's own engine and adds up
all tensors: before each backward pass and each optimizer step, of which the most counts, and after the last step.
Sequences have a few tokens, so activations and logits do not count. Each case runs in processes of its own, one per
rank (gloo); the rank that holds most counts. A second table counts what a layer keeps per token for the backward pass.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.learner.connections.progress_pipe import MEETING_VARIABLE
from services.learner.model.ranks import join, leave, prepare_environment

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
EMBEDDED = str(Path(__file__).parent.parent / "examples" / "embedded" / "policy")
BUCKET = 500_000_000
"""Elements that DeepSpeed reduces at once, at most (services/learner/model/engine.py)."""
LIVE = 1_000_000_000
"""Parameters that DeepSpeed leaves gathered under ZeRO-3, at most: its default."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the first table."""

    model: str
    """`embedded`, or `random`: a Qwen3 of 40 million parameters."""
    dtype: str
    stage: int
    ranks: int
    objective: str = "srpo"
    lora: bool = False


CASES = [
    *(Case("embedded", "float32", stage, 1) for stage in (0, 3)),
    *(Case("random", "bfloat16", stage, 1) for stage in (1, 2, 3)),
    *(Case("random", "bfloat16", stage, 2) for stage in (1, 2, 3)),
    *(Case("random", "float32", stage, 2) for stage in (0, 1, 2, 3)),
    Case("random", "bfloat16", 1, 1, "grpo"),
    Case("random", "bfloat16", 1, 1, lora=True),
    Case("random", "bfloat16", 3, 2, lora=True),
]


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured on one rank, in bytes."""

    num_parameters: int
    num_trained: int
    most: int
    rest: int


def held(case: Case, trained: float, num_trained: int) -> tuple[float, float]:
    """Bytes per parameter and rank, at most and after a step. docs/sizing.md has the same as a table.

    Args:
        trained: share of the parameters that are trained; 1 without LoRA.
    """
    half = case.dtype == "bfloat16"
    width, stage = (2 if half else 4), (max(1, case.stage) if half else case.stage)
    cut_weights = case.ranks if stage == 3 else 1
    cut_state = case.ranks if stage >= 1 else 1
    weights = width / cut_weights
    state = (12 if stage >= 1 else 8) / cut_state * trained
    teacher = 0.0
    if case.objective != "grpo":
        model, averages = (0.0 if case.lora else weights), (4 / cut_weights if half or case.lora else 0.0)
        teacher = model + averages * trained
    bucket = width * min(1, BUCKET / num_trained)
    gathered = width * min(1, LIVE / num_trained) if case.ranks > 1 else 0.0
    kept, passing = {
        0: (0.0, 4.0),
        1: (4.0, 2.0) if half else (0.0, 4.0 + bucket),
        2: (0.0, 4 / case.ranks),
        3: (4 / case.ranks + bucket, gathered),
    }[stage]
    rest = weights + state + teacher + kept * trained
    return rest + passing * trained, rest


def random_model(
    dtype: str, layers: int = 12, hidden: int = 512, middle: int = 1536, heads: tuple[int, int] = (8, 4)
) -> Any:
    """A Qwen3 with random weights; heads for queries and for keys of size 64."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from services.learner.model.tree_attention import share_prefixes

    shape = {"hidden_size": hidden, "intermediate_size": middle, "num_hidden_layers": layers, "head_dim": 64}
    attention = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "attn_implementation": "sdpa"}
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=1024, tie_word_embeddings=True, use_cache=False, **shape, **attention)
    model = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    assert share_prefixes(model)
    return model.train()


def model_of(case: Case, config: Any) -> Any:
    """The model to train, with its adapter if there is one."""
    from services.learner.model.export import load_model
    from services.learner.model.lora import inject

    if case.model == "random":
        model = random_model(case.dtype)
    else:
        model = load_model(config.model, EMBEDDED, gradient_checkpointing=False, allow_remote_code=False)
    return inject(model, config.model) if case.lora else model


def configuration(case: Case) -> Any:
    """The run's configuration: two sequences in two micro-batches."""
    from services.contracts.run_config import parse_run_config

    model: dict[str, Any] = {"path": "unused", "dtype": case.dtype}
    if case.lora:
        model["lora"] = {"rank": 16}
    training = {"steps": 4, "zero_stage": case.stage, "num_ranks": case.ranks, "tokens_per_microbatch": 4}
    sections = {"objective": {"name": case.objective}, "training": training}
    return parse_run_config({"name": "memory", "model": model, "data": {"train": "unused"}, **sections})


def alive() -> int:
    """Bytes of all tensors, storages counted once."""
    import torch

    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    tensors += [item.grad for item in tensors if item.is_leaf and item.grad is not None]
    storages = [item.untyped_storage() for item in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}.values())


def measure(case: Case, rank: int, meeting: str, result: Any) -> None:
    """Put what one rank holds into `result`."""
    os.dup2(2, 1)  # libraries print, and standard output is the report
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.ranks), MEETING_VARIABLE: meeting}
    prepare_environment()
    from services.learner.model.engine import DeepSpeedEngine
    from services.learner.packing.sequence import TrainSequence
    from services.learner.update.update import run_minibatch

    config, ranks = configuration(case), join()
    empty = alive()
    engine = DeepSpeedEngine(config, model_of(case, config), ranks)
    sizes = [(getattr(own, "ds_numel", own.numel()), own.requires_grad) for own in engine.module.parameters()]
    seen: list[int] = []

    def counted(method: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            seen.append(alive() - empty)
            return method(*arguments, **named)

        return call

    engine.backward, engine.step = counted(engine.backward), counted(engine.step)  # type: ignore[method-assign]
    taught = [1, 2, 3] if case.objective == "srpo" else None
    route: Any = "sdpo" if taught else "grpo"
    rows = [TrainSequence([first, 2], [3, 4], [-1.0] * 2, 0.5, route, taught) for first in (1, 5)]
    for _ in range(2):
        seen.clear()
        run_minibatch(engine, rows, None, config)
    trained = sum(size for size, is_trained in sizes if is_trained)
    result.put(Found(sum(size for size, _ in sizes), trained, max(seen), alive() - empty))
    leave()


def in_processes(case: Case) -> Found:
    """The rank that holds most."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = context.Queue()
        arguments = [(case, rank, os.path.join(folder, "store"), results) for rank in range(case.ranks)]
        processes = [context.Process(target=measure, args=each) for each in arguments]
        for process in processes:
            process.start()
        found: list[Found] = [results.get(timeout=300) for _ in processes]
        for process in processes:
            process.join()
    return max(found, key=lambda each: each.most)


def states() -> None:
    """Print the first table."""
    print(
        "## Memory of the learner per parameter\n\n"
        "Bytes of all tensors per parameter on the rank that holds most: at most (with gradients) "
        "and after a step. Formulas are those of [Sizing](sizing.md#learner). `embedded` is the embedded policy, "
        "`random` a Qwen3 of 40 million parameters; LoRA has rank 16.\n\n"
        "| model | dtype | trains | ZeRO stage | ranks | at most | formula | after a step | formula |\n"
        "|---|---|---|---:|---:|---:|---:|---:|---:|"
    )
    for case in CASES:
        found = in_processes(case)
        formulas = held(case, found.num_trained / found.num_parameters, found.num_trained)
        most, rest = (size / found.num_parameters for size in (found.most, found.rest))
        label = case.objective + (", LoRA" if case.lora else "")
        print(
            f"| {case.model} | {case.dtype} | {label} | {case.stage} | {case.ranks} | {most:.2f} | {formulas[0]:.2f} | "
            f"{rest:.2f} | {formulas[1]:.2f} |",
            flush=True,
        )


def kept_bytes(model: Any, tokens: int) -> int:
    """Bytes that a pass over a response of so many tokens keeps for the backward pass, without the weights."""
    import torch

    from services.learner.model.forward import run_with_job
    from services.learner.packing.prefix_tree import pack_tree

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    batch = pack_tree([[1]], [list(range(tokens))], [0], torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run_with_job(model, batch, lambda _, hidden: hidden.sum())
    return sum(storage.nbytes() for storage in kept.values())


def per_layer(dtype: str, hidden: int, middle: int, heads: tuple[int, int], *, again: bool) -> float:
    """Bytes per token and layer: what two layers more keep, in the difference of two lengths."""
    found = {}
    for layers in (2, 4):
        model = random_model(dtype, layers, hidden, middle, heads)
        if again:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for tokens in (128, 256):
            found[layers, tokens] = kept_bytes(model, tokens)
    return (found[4, 256] - found[2, 256] - found[4, 128] + found[2, 128]) / 2 / 128


def kept(dtype: str, hidden: int, middle: int, heads: tuple[int, int], *, again: bool) -> float:
    """The formula for `per_layer`."""
    half, queries, keys = dtype == "bfloat16", 64 * heads[0], 64 * heads[1]
    if again:
        return (2 if half else 4) * hidden
    by_hidden, by_middle, by_queries, by_keys = (16, 8, 12, 10) if half else (24, 16, 20, 16)
    return by_hidden * hidden + by_middle * middle + by_queries * queries + by_keys * keys


def activations() -> None:
    """Print the second table."""
    print(
        "\nActivations that one layer of a Qwen3 keeps per token for the backward pass (heads of 64, one response "
        "without a shared prefix), and with `training.gradient_checkpointing`.\n\n"
        "| dtype | hidden | intermediate | query heads | key heads | checkpointing | bytes | formula |\n"
        "|---|---:|---:|---:|---:|---|---:|---:|"
    )
    shapes = [(512, 1536, (8, 4)), (1024, 1536, (8, 4)), (512, 3072, (8, 4)), (512, 1536, (16, 4)), (512, 1536, (8, 8))]
    cases = [(dtype, *shape, False) for dtype in ("bfloat16", "float32") for shape in shapes]
    cases += [(dtype, 512, 1536, (8, 4), True) for dtype in ("bfloat16", "float32")]
    for dtype, hidden, middle, heads, again in cases:
        found, formula = (count(dtype, hidden, middle, heads, again=again) for count in (per_layer, kept))
        word = "yes" if again else "no"
        print(f"| {dtype} | {hidden} | {middle} | {heads[0]} | {heads[1]} | {word} | {found:.0f} | {formula:.0f} |")


def main() -> None:
    """Print both tables."""
    states()
    activations()


if __name__ == "__main__":
    main()

"""`make gpu-proof`: checks the learner on this machine's GPU, part by part, and prints a report in Markdown.

python -m benchmarks._gpu_proof [part ...]      without a GPU, it runs the same parts on the CPU with a small model

The model has random weights in the shapes of Qwen3 (0.6B, 1.7B or 4B, by free memory), so nothing is downloaded. A part
that fails is reported and does not stop the others. Needs torch, transformers, DeepSpeed and PEFT. Not covered: vLLM,
weight transports, several GPUs, kill and resume.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.learner.model.ranks import join, leave, prepare_environment

prepare_environment()

import torch  # noqa: E402

from benchmarks._allocated import Allocated  # noqa: E402
from services.contracts import sizing  # noqa: E402
from services.contracts.run_config import RunConfig, parse_run_config  # noqa: E402
from services.learner.model.tree_attention import share_prefixes  # noqa: E402
from services.learner.packing.sequence import TrainSequence  # noqa: E402
from services.learner.update.update import run_minibatch  # noqa: E402

SHAPES = {
    "4B": (36, 2560, 9728, 32, 8, 128, 151936),
    "1.7B": (28, 2048, 6144, 16, 8, 128, 151936),
    "0.6B": (28, 1024, 3072, 16, 8, 128, 151936),
    "small": (4, 64, 192, 4, 2, 16, 512),
}
"""Layers, hidden size, MLP size, query heads, key heads, head size, vocabulary."""
BYTES_PER_PARAMETER = 32
"""What a part needs at most, with the passes' memory."""
PROMPT, GROUP = 32, 4
TOLERANCES = {"bfloat16": (0.02, 0.05), "float32": (1e-3, 1e-3)}
"""Largest relative difference of loss and of gradients to float32 on the CPU: expectations, not yet tried on a GPU."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and with what the parts run."""

    device: torch.device
    shape: str
    dtype: str
    response: int


def choose() -> Place:
    """The GPU with the largest model that fits; the CPU with a small one."""
    if not torch.cuda.is_available():
        return Place(torch.device("cpu"), "small", "bfloat16", 24)
    free = torch.cuda.mem_get_info()[0]
    sizes = {"4B": 4.0e9, "1.7B": 1.7e9, "0.6B": 0.6e9}
    shape = next((name for name, size in sizes.items() if size * BYTES_PER_PARAMETER < free), "small")
    return Place(torch.device("cuda", 0), shape, "bfloat16", 512)


def configuration(place: Place, **model: Any) -> RunConfig:
    values = {"path": "random", "dtype": place.dtype} | model
    rollout = {"group_size": GROUP, "max_prompt_tokens": PROMPT, "max_response_tokens": place.response}
    training = {"steps": 4, "prompts_per_step": 2, "tokens_per_microbatch": PROMPT + GROUP * place.response}
    sections = {"rollout": rollout, "training": training, "objective": {"name": "srpo"}}
    return parse_run_config({"name": "proof", "model": values, "data": {"train": "none"}, **sections})


def model_of(place: Place, *, share: bool = True) -> Any:
    """Random weights, the same on each device."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    layers, hidden, middle, heads, keys, size, vocabulary = SHAPES[place.shape]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=middle,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=size,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).to(getattr(torch, place.dtype))
    model.config.use_cache = False
    if share:
        assert share_prefixes(model), "the model cannot share prefixes here"
    return model.to(place.device).train()


def sequences(place: Place) -> list[TrainSequence]:
    """Two groups; half of the responses have a teacher."""
    made = []
    for number in range(2 * GROUP):
        prompt = [(7 * (number // GROUP) + at) % 500 for at in range(PROMPT)]
        response = [(13 * number + 3 * at + 1) % 500 for at in range(place.response)]
        teacher = [*prompt, *response[::-1]] if number % 2 else None
        made.append(
            TrainSequence(prompt, response, [-6.0] * len(response), 0.5, "sdpo" if teacher else "grpo", teacher)
        )
    return made


class PlainEngine:
    """An engine of one process that keeps gradients instead of making a step."""

    rank, num_ranks = 0, 1

    def __init__(self, student: Any, teacher: Any, device: torch.device) -> None:
        self.reference: torch.nn.Module | None = None
        self.student, self.teacher, self.device = student, teacher.requires_grad_(False), device
        self.gradients: dict[str, torch.Tensor] = {}

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def all_reduce_max(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def step(self) -> float:
        named = self.student.named_parameters()
        self.gradients = {name: own.grad.float().cpu() for name, own in named if own.grad is not None}
        return float(torch.nn.utils.get_total_norm(list(self.gradients.values())))


def update(place: Place, *, share: bool = True, lora: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one update."""
    config = configuration(place, **({"lora": {"rank": 8}} if lora else {}))
    student, teacher = model_of(place, share=share), model_of(place, share=share)
    if lora:
        from services.learner.model.lora import inject

        student = inject(student, config.model).to(place.device)
    engine = PlainEngine(student, teacher, place.device)
    return run_minibatch(engine, sequences(place), None, config).loss, engine.gradients


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Of all gradients together, relative to the expected ones' length."""
    off = sum(float((found[name] - value).square().sum()) for name, value in expected.items())
    return float((off / sum(float(value.square().sum()) for value in expected.values())) ** 0.5)


def agree(place: Place, found: Any, expected: Any) -> str:
    """One line; raises `AssertionError` if they differ by more than `TOLERANCES`."""
    loss = abs(found[0] - expected[0]) / max(1e-3, abs(expected[0]))
    gradients = distance(found[1], expected[1])
    text = (
        f"loss {found[0]:.5f} and {expected[0]:.5f}, relative difference {loss:.1e}; of the gradients {gradients:.1e}"
    )
    limits = TOLERANCES[place.dtype]
    assert loss <= limits[0], text
    assert gradients <= limits[1], text
    return text


def step_against_cpu(place: Place) -> str:
    """One update here and in float32 on the CPU, on the 0.6B shape at most and with short responses."""
    shape = "0.6B" if place.device.type == "cuda" else place.shape
    here, there = Place(place.device, shape, place.dtype, 24), Place(torch.device("cpu"), shape, "float32", 24)
    return agree(here, update(here), update(there))


def prefix_sharing(place: Place) -> str:
    """The same update with and without shared prefixes."""
    return agree(place, update(place), update(place, share=False))


def lora(place: Place) -> str:
    """An adapter's update has finite gradients for every matrix."""
    loss, gradients = update(place, lora=True)
    assert gradients, "nothing is trained"
    assert all(bool(value.isfinite().all()) for value in gradients.values()), "gradients are not finite"
    return f"loss {loss:.5f}, {len(gradients)} matrices with finite gradients"


def memory_and_speed(place: Place) -> str:
    """Updates with DeepSpeed: peak of allocated memory against the planner, response tokens per second."""
    from services.learner.model.engine import DeepSpeedEngine

    config, rows = configuration(place), sequences(place)
    on_gpu = place.device.type == "cuda"
    allocated = Allocated()
    with allocated:
        model = model_of(place)
        allocated.hold(list(model.parameters()))
        shape = sizing.shape_of(model.config.to_dict(), "random")
        engine = DeepSpeedEngine(config, model, join())
        run_minibatch(engine, rows, None, config)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        allocated.restart()
        run_minibatch(engine, rows, None, config)
    peak = torch.cuda.max_memory_allocated() if on_gpu else allocated.peak
    started = time.perf_counter()
    report = run_minibatch(engine, rows, None, config)
    seconds = time.perf_counter() - started
    forecast = sizing.learner(config, shape).total
    return (
        f"{peak / 2**20:.1f} MiB allocated with the optimizer's step, forecast {forecast / 2**20:.1f} MiB; "
        f"{report.sums['num_tokens'] / seconds:,.0f} response tokens per second"
    )


PARTS: dict[str, Callable[[Place], str]] = {
    "step-against-cpu": step_against_cpu,
    "prefix-sharing": prefix_sharing,
    "lora": lora,
    "memory-and-speed": memory_and_speed,
}


def main(names: list[str]) -> int:
    """Print the report; the exit code counts parts that failed."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print, and standard output is the report
    if unknown := [name for name in names if name not in PARTS]:
        print(f"There is no part {unknown[0]}; choose from {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    place, failed = choose(), 0
    card = torch.cuda.get_device_name(0) if place.device.type == "cuda" else "no GPU: CPU"
    print(
        f"# GPU proof\n\n{card}, Qwen3 {place.shape} with random weights, {place.dtype}, torch {torch.__version__}\n",
        file=report,
    )
    print("| part | result | found |\n|---|---|---|", file=report, flush=True)
    for name in names or PARTS:
        try:
            result, text = "passed", PARTS[name](place)
        except Exception as error:  # noqa: BLE001  # the report names it, and the next part runs
            traceback.print_exc()
            failed += 1
            lines = str(error).strip().splitlines() or [""]
            result, text = "FAILED", f"{type(error).__name__}: {lines[0]}".replace("|", "/")
        print(f"| {name} | {result} | {text} |", file=report, flush=True)
    leave()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

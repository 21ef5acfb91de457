"""The learner's parts of the GPU proof: what one process with a model of random weights can check.

The model has the shapes of Qwen3, so nothing is downloaded. Tolerances are expectations, not yet tried on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from services.contracts import sizing
from services.contracts.run_config import RunConfig, parse_run_config
from services.learner.model.ranks import join
from services.learner.packing.sequence import TrainSequence
from services.learner.proof.allocated import Allocated
from services.learner.proof.random_model import Place, model_of
from services.learner.update.update import run_minibatch

PROMPT, GROUP = 32, 4
TOLERANCES = {"bfloat16": (0.02, 0.05), "float32": (1e-3, 1e-3)}
"""Largest relative difference of loss and of gradients to float32 on the CPU: expectations, not yet tried on a GPU."""


def configuration(place: Place, **model: Any) -> RunConfig:
    values = {"path": "random", "dtype": place.dtype} | model
    rollout = {"group_size": GROUP, "max_prompt_tokens": PROMPT, "max_response_tokens": place.response}
    training = {"steps": 4, "prompts_per_step": 2, "tokens_per_microbatch": PROMPT + GROUP * place.response}
    sections = {"rollout": rollout, "training": training, "objective": {"name": "srpo"}}
    return parse_run_config({"name": "proof", "model": values, "data": {"train": "none"}, **sections})


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

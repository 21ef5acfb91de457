"""Run by `test_device`, one process: updates on the virtual device and on the CPU.

<file>      writes, by case, the losses, norms and largest differences, and what waited
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.contracts.model import LoraSection, ModelSection
from services.contracts.run_config import RunConfig
from services.learner.model.ema import EmaTeacher
from services.learner.model.export import whole_weights
from services.learner.model.lora import inject
from services.learner.model.swap import AdapterTeacher, initial_model
from services.learner.update.scoring import old_logprobs
from services.learner.update.update import _Update, run_minibatch
from tests.services.learner.objectives.builders import PlainEngine, random_sequences, run_config
from tests.services.learner.virtual_device import MixedDevicesError, journal, moved, register, virtual_device

RATE = 0.01
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"name": "grpo"},
    "grpo, all options": {
        "name": "grpo",
        "ratio": "sequence",
        "engine_mask": "sequence",
        "aggregation": "sequence",
        "reference_kl_coefficient": 0.2,
        "dual_clip": 3.0,
    },
    "cispo, masked tokens": {"name": "grpo", "surrogate": "cispo", "engine_mask": "token"},
    "sdpo": {"name": "sdpo", "top_k": 5},
    "srpo": {"name": "srpo", "top_k": 5},
    "srpo, whole vocabulary": {"name": "srpo", "top_k": None},
    "advantage_mix": {"name": "advantage_mix"},
}


class DeviceEngine(PlainEngine):
    """A plain engine on a device, with gradient descent and a moving-average teacher."""

    def __init__(
        self, device: torch.device, *, share: bool = True, recompute: bool = False, lora: bool = False
    ) -> None:
        super().__init__(share=share)
        self.device = device
        if lora:
            torch.manual_seed(5)
            self.student = inject(self.student, ModelSection(path="unused", dtype="float32", lora=LoraSection(rank=2)))  # type: ignore[assignment]
        for model in (self.student, self.teacher, self.reference):
            moved(model, device)  # type: ignore[arg-type]
        if recompute:
            self.student.gradient_checkpointing_enable({"use_reentrant": False})
            self.student.train()
        if lora:
            whole = Whole(self.student)
            self.ema: EmaTeacher = AdapterTeacher(whole, 0.05, device)
            self.teacher, self.reference = self.ema.model, initial_model(whole)  # type: ignore[assignment]
        else:
            self.ema = EmaTeacher(self.teacher, 0.05, device, offload=False)
            self.ema.attach(self.student)

    def step(self) -> float:
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
        with torch.no_grad():
            for parameter in trained:
                parameter.sub_(parameter.grad, alpha=RATE)
        self.student.zero_grad()
        self.ema.update()
        return float(norm)


class Whole(torch.nn.Module):
    """As much of a DeepSpeed engine as an adapter's teacher needs."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.module(*arguments, **named)


def two_steps(engine: DeviceEngine, case: dict[str, Any]) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Losses and norms of two updates, and the weights after them."""
    run: RunConfig = run_config(tokens_per_microbatch=40, **case)
    routes = {"grpo": ("grpo",), "sdpo": ("sdpo",)}.get(case["name"], ("grpo", "sdpo"))
    if case["name"] == "advantage_mix":
        routes = ("grpo",)
    numbers = []
    for seed in (1, 2):
        sequences = random_sequences(seed, 12, routes=routes, teach_grpo=case["name"] == "advantage_mix")
        report = run_minibatch(engine, sequences, old_logprobs(engine, sequences, run), run)
        numbers.append([report.loss, report.gradient_norm, *report.sums.values(), *report.weight_counts])
    weights = whole_weights(engine.student, 0) | {
        f"teacher.{index}": value.to("cpu") for index, value in enumerate(engine.ema.full_averages())
    }
    return numbers, weights


@contextmanager
def watched_passes() -> Iterator[list[str]]:
    """Collects what waits from the loading of a micro-batch to the end of its backward pass."""
    found: list[str] = []
    places = [(_Update, "_teach_one"), (_Update, "_refer"), (_Update, "_student_pass"), (DeviceEngine, "backward")]
    kept = [getattr(place, name) for place, name in places]

    def watching(method: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            before = journal.waits.copy()
            out = method(*args, **named)
            found.extend(journal.waits - before)
            return out

        return call

    for (place, name), method in zip(places, kept, strict=True):
        setattr(place, name, watching(method))
    try:
        yield found
    finally:
        for (place, name), method in zip(places, kept, strict=True):
            setattr(place, name, method)


def compare(case: dict[str, Any], **options: bool) -> dict[str, Any]:
    plain, weights = two_steps(DeviceEngine(torch.device("cpu"), **options), case)
    with virtual_device() as device:
        engine = DeviceEngine(device, **options)
        journal.waits.clear()
        with watched_passes() as inside:
            there, moved_weights = two_steps(engine, case)
    return {
        "plain": plain,
        "there": there,
        "difference": max(float((value - moved_weights[name]).abs().max()) for name, value in weights.items()),
        "inside": sorted(set(inside)),
        "waits": {place: count for place, count in journal.waits.items() if "/update/" in place},
    }


def controls() -> dict[str, Any]:
    """That the device refuses and counts what a GPU would not do or would wait for."""
    found: dict[str, Any] = {}
    with virtual_device() as device:
        there = torch.arange(4.0, device=device)
        try:
            there + torch.arange(4.0)
        except MixedDevicesError as error:
            found["mixed"] = str(error)
        faults = {
            "bool": lambda: bool(there.isnan().any()),
            "float": lambda: float(there.sum()),
            "mask": lambda: there[there > 1],
            "bincount": lambda: torch.bincount(there.long()),
            "cpu": there.cpu,
            "tolist": there.tolist,
        }
        for name, fault in faults.items():
            journal.waits.clear()
            fault()
            found[name] = sum(journal.waits.values())
        journal.waits.clear()
        (there[torch.arange(2, device=device)] * 2.0).clamp(min=torch.zeros((), device=device))
        found["none"] = sum(journal.waits.values())
    return found


def run_from(arguments: list[str]) -> None:
    register()
    found = {name: compare(case) for name, case in CASES.items()}
    found["controls"] = controls()
    found["padded rows"] = compare(CASES["srpo"], share=False)
    found["LoRA"] = compare(CASES["grpo, all options"] | {"name": "srpo", "top_k": 5}, lora=True)
    found["checkpointing"] = compare(CASES["srpo"], recompute=True)
    Path(arguments[0]).write_text(json.dumps(found))

"""The self-teacher, an exponential moving average of the student's weights (arXiv 2601.20802, section 3), for ZeRO 0-3.

    teacher <- (1 - rate) * teacher + rate * student      after every optimizer update, in float32

- The average is kept in float32 whatever the dtype of the passes. At rate 0.05 a bfloat16 average stalls, because the
  change is smaller than half a unit in the last place.
- Under ZeRO-3 both models are partitioned over the ranks in the same way, so each rank averages its own parts
  (`ds_tensor`) and nothing is gathered. (With more than one rank, writes to parameters inside `GatheredParameters`
  without `modifier_rank` are discarded, and the teacher would never move.) A parameter that is still gathered is
  released first, because its gathered copy would become stale.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from services.contracts.run_config import RunConfig
from services.learner.model.keeper import TeacherKeeper


class EmaTeacher(TeacherKeeper):
    """The averaged model. Passes run on `model`; the float32 averages may be separate tensors."""

    def __init__(self, model: nn.Module, rate: float, device: torch.device, *, offload: bool) -> None:
        """`model` is a whole copy of the student, or the module of a ZeRO-3 engine."""
        super().__init__(model, device, offload=offload)
        self.rate = rate
        self.names: list[str] = []
        """Names of the averaged parameters, in the order of `full_averages`."""
        self._student: list[nn.Parameter] = []
        self._averages: list[Tensor] = []

    @classmethod
    def of(
        cls, student: nn.Module, config: RunConfig, device: torch.device, stage: int, settings: dict[str, Any]
    ) -> EmaTeacher:
        """A teacher equal to `student`. Call this before DeepSpeed takes over the student."""
        model = frozen(copy.deepcopy(student), device, stage, settings)
        return cls(model, config.objective.teacher_ema_rate, device, offload=config.training.offload_teacher)

    def attach(self, student: nn.Module) -> None:
        """Start following `student`. Call this once DeepSpeed has taken it over."""
        self.names = [name for name, _ in student.named_parameters()]
        self._student = list(student.parameters())
        self._averages = []
        for own in self._own():
            part = part_of(own).detach()
            separate = part.dtype != torch.float32 or self.offload
            self._averages.append(
                part.to("cpu" if self.offload else part.device, torch.float32, copy=True) if separate else part
            )
        assert len(self._averages) == len(self._student)
        self.to_rest()

    def _own(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    @torch.no_grad()
    def update(self, rate: float | None = None) -> None:
        """Move the averages towards the student by `rate` (None: the run's; 1 makes them equal), and copy them into the
        model that passes run on."""
        self._release()
        for own, average, student in zip(self._own(), self._averages, self._student, strict=True):
            target = part_of(student).to(average.device, torch.float32)
            assert target.shape == average.shape, "student and teacher are partitioned differently"
            average.lerp_(target, self.rate if rate is None else rate)
            self._write_back(own, average)

    def _write_back(self, own: nn.Parameter, average: Tensor) -> None:
        part = part_of(own)
        if part.data_ptr() != average.data_ptr():
            part.copy_(average)

    def _release(self) -> None:
        for own in self._own():
            if _is_gathered(own):
                own.partition()  # type: ignore[attr-defined]

    @torch.no_grad()
    def full_averages(self) -> Iterator[Tensor]:
        """Whole float32 averages in the order of the model's parameters. Collective: all ranks must iterate over it."""
        self._release()
        for own, average in zip(self._own(), self._averages, strict=True):
            yield whole_of_parts(own, average)

    @torch.no_grad()
    def load_full(self, values: Iterator[Tensor]) -> None:
        """Set the averages from whole tensors, in the order of `full_averages`."""
        self._release()
        for own, average, value in zip(self._own(), self._averages, values, strict=True):
            average.copy_(part_of_whole(own, value, average.numel()).view_as(average))
            self._write_back(own, average)


def frozen(model: nn.Module, device: torch.device, stage: int, settings: dict[str, Any]) -> nn.Module:
    """`model` itself, on the device for passes without gradients; under ZeRO-3 partitioned like the student."""
    model.requires_grad_(False).eval()
    return _partitioned(model, settings) if stage == 3 else model.to(device)


def part_of(parameter: nn.Parameter) -> Tensor:
    """This rank's part of a parameter under ZeRO-3, otherwise the whole parameter."""
    part = getattr(parameter, "ds_tensor", None)
    return parameter.data if part is None else part.data


def _is_gathered(parameter: nn.Parameter) -> bool:
    status = getattr(parameter, "ds_status", None)
    return status is not None and status.name == "AVAILABLE"


def whole_of_parts(parameter: Any, part: Tensor) -> Tensor:
    """The whole tensor of which `part` is this rank's part, partitioned like `parameter`. Collective under ZeRO-3."""
    if not hasattr(parameter, "ds_tensor"):
        return part
    num_ranks = torch.distributed.get_world_size()
    device = parameter.ds_tensor.device
    buffer = torch.empty(num_ranks * part.numel(), dtype=part.dtype, device=device)
    torch.distributed.all_gather_into_tensor(buffer, part.flatten().to(device))
    return buffer[: parameter.ds_numel].view(parameter.ds_shape)


def part_of_whole(parameter: Any, value: Tensor, part_numel: int) -> Tensor:
    """This rank's part of a whole tensor, flat and padded with zeros; the whole tensor without ZeRO-3."""
    if not hasattr(parameter, "ds_tensor"):
        return value
    rank = torch.distributed.get_rank()
    flat = value.flatten()[rank * part_numel : (rank + 1) * part_numel]
    return torch.nn.functional.pad(flat, (0, part_numel - flat.numel()))


def _partitioned(model: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """The model partitioned over the ranks by a DeepSpeed engine without optimizer."""
    import deepspeed

    zero = {
        **settings["zero_optimization"],
        # Nothing may stay gathered after use, because the update writes to the parts.
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
    }
    engine, _, _, _ = deepspeed.initialize(model=model, config={**settings, "zero_optimization": zero})
    module: nn.Module = engine.module
    return module

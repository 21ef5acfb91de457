"""The student with other values in its trained parameters: teacher and reference of a LoRA run, without a second model.

Student, teacher and initial model share the frozen base and differ only in the adapter, a few thousandths of its size.
A teacher pass is therefore a student pass with the averages in place of the adapter, and a pass of the initial model is
one with zeros. The student's own values are restored bit for bit. Modules, hooks and the order of calls are the
student's, so these passes behave like its own under ZeRO 0-3.

Under ZeRO-3 each rank swaps its own part of every parameter. Gathered parameters are released first, because a gathered
copy would keep the old values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from services.learner.model.ema import EmaTeacher, part_of

Values = Callable[[], Sequence[Tensor]]


class SwappedStudent(nn.Module):
    """Looks like the student; `forward` runs it with the values of `values()`, without gradients."""

    def __init__(self, deepspeed_engine: Any, parameters: Sequence[nn.Parameter], values: Values) -> None:
        """`values` returns one tensor per parameter: this rank's part or a scalar, of any floating dtype and device."""
        super().__init__()
        # In a list, so that torch does not register the student as a child of this module.
        self._engine, self._swapped = [deepspeed_engine], list(parameters)
        self._values = values

    @property
    def module(self) -> nn.Module:
        """The Hugging Face model, with the student's own values."""
        model: nn.Module = self._engine[0].module
        return model

    @torch.no_grad()
    def forward(self, *arguments: Any, **named: Any) -> Any:
        with self._in_place():
            return self._engine[0](*arguments, **named)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        self.release()
        parts = [part_of(parameter) for parameter in self._swapped]
        own = [part.clone() for part in parts]
        for part, value in zip(parts, self._values(), strict=True):
            part.copy_(value)
        try:
            yield
        finally:
            self.release()
            for part, value in zip(parts, own, strict=True):
                part.copy_(value)

    def release(self) -> None:
        """Under ZeRO-3, release everything that is gathered."""
        if hasattr(self._swapped[0], "ds_tensor"):
            self._engine[0].optimizer.empty_partition_cache()


class AdapterTeacher(EmaTeacher):
    """The float32 moving average of the trained parameters only; its model is the student with them swapped in."""

    def __init__(self, deepspeed_engine: Any, rate: float, device: torch.device) -> None:
        self._swap = SwappedStudent(deepspeed_engine, _trained(deepspeed_engine), lambda: self._averages)
        super().__init__(self._swap, rate, device, offload=False)
        self.attach(deepspeed_engine.module)

    def attach(self, student: nn.Module) -> None:
        named = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
        self.names, self._student = [name for name, _ in named], [parameter for _, parameter in named]
        self._averages = [part_of(own).detach().to(torch.float32, copy=True) for own in self._student]

    def _own(self) -> Iterator[nn.Parameter]:
        return iter(self._student)

    def _write_back(self, own: nn.Parameter, average: Tensor) -> None:
        """Nothing to do: each pass reads the averages."""

    def _release(self) -> None:
        self._swap.release()


def initial_model(deepspeed_engine: Any) -> SwappedStudent:
    """The base without its adapter: an adapter of zeros adds exact zeros."""
    parameters = _trained(deepspeed_engine)
    zeros = [torch.zeros((), device=part_of(parameter).device) for parameter in parameters]
    return SwappedStudent(deepspeed_engine, parameters, lambda: zeros)


def _trained(deepspeed_engine: Any) -> list[nn.Parameter]:
    return [parameter for parameter in deepspeed_engine.module.parameters() if parameter.requires_grad]

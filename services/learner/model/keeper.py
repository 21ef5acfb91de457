"""Where a teacher's model is: on the device for passes, with `training.offload_teacher` in CPU memory between steps."""

from __future__ import annotations

import torch
from torch import nn


class TeacherKeeper:
    """Keeps a model that nothing trains."""

    def __init__(self, model: nn.Module, device: torch.device, *, offload: bool) -> None:
        """`model` is whole, or the module of a ZeRO-3 engine."""
        self.model = model
        self.device = device
        self.offload = offload

    def to_passes(self) -> None:
        """Move an offloaded model to the device for teacher passes. Under ZeRO-3 its parts stay where they are."""
        if self.offload and not self._is_cut():
            self.model.to(self.device)

    def to_rest(self) -> None:
        """Move an offloaded model back to CPU memory."""
        if self.offload and not self._is_cut():
            self.model.to("cpu")

    def _is_cut(self) -> bool:
        return any(hasattr(own, "ds_tensor") for own in self.model.parameters())

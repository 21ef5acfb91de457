"""Rejects NaN and infinite numbers, by name."""

from __future__ import annotations

import torch
from torch import Tensor

from services.contracts.errors import TurnoutError

REMEDY = "The update was not made; resume from the last checkpoint with a lower learning rate or in float32."


class NonFiniteError(TurnoutError):
    """A tensor of the objective holds NaN or infinity. `field` is its name."""

    title = "Non-finite numbers in training"


def require_finite(name: str, values: Tensor) -> None:
    """Raise `NonFiniteError` naming `name` where `values` (any shape, floating point) holds NaN or +-infinity."""
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity.", remedy=REMEDY, field=name)

"""Transport `store`: servers read the version's folder and need no offer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from services.learner.publish.base import Sender
from services.runtime.settings import Settings


class StoreSender(Sender):
    """Offers nothing."""

    @classmethod
    def make(cls, device: torch.device, settings: Settings) -> Self:
        return cls()

    def load(self, version: int, weights: Mapping[str, Tensor]) -> None:
        return None

    def offer(self) -> None:
        return None


SENDER = StoreSender

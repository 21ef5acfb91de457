"""The interface of a weight transport on the learner's side.

The store remains the source of truth: every version is published there too, and a server loads it from there if the
transport fails. Senders run on the writer thread or on their own threads, and read the same snapshot in CPU memory from
which the store is written. Training shares the GPU with them, but does not wait for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from services.contracts.transports.base import Offer
from services.contracts.transports.layout import Layout
from services.runtime.settings import Settings


class UnusableError(Exception):
    """A transport cannot work here. `reason` is a clause and `remedy` an imperative, both without a period."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class Sender(ABC):
    """Offers the newest version to rollout servers."""

    @classmethod
    @abstractmethod
    def make(cls, device: torch.device, settings: Settings) -> Self:
        """A sender for a run whose learner computes on `device`. Raises `UnusableError`."""

    @abstractmethod
    def load(self, version: int, weights: Mapping[str, Tensor]) -> Layout | None:
        """Replace the previous version with this one. `weights` are in CPU memory and do not change afterwards. Returns
        the packing of the version, or None if it is not packed."""

    @abstractmethod
    def offer(self) -> Offer | None:
        """How servers get the version, apart from its folder. Constant for the sender's lifetime; call `load` first."""

    def standing_offer(self) -> Offer | None:
        """How servers get at versions that an earlier learner published; None if only what was loaded is offered."""
        return None

    def close(self) -> None:  # noqa: B027 - most senders have nothing to close
        """Stop serving."""


def require_cuda(device: torch.device) -> None:
    """Raise `UnusableError` unless `device` is a CUDA device."""
    if device.type != "cuda":
        raise UnusableError("the learner has no CUDA device", "Run the learner on a GPU")

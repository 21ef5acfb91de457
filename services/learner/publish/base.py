"""What a weight transport is on the learner's side.

The store stays the source of truth: every version is published there too, and a server that gets nothing by the
transport loads it from there. Senders run on the writer thread or on threads of their own, from the snapshot in CPU
memory that the store is written from; training shares the GPU with them and waits for nothing.
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
    """A transport cannot work here: `reason` as in "X is so", and the remedy as an imperative."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class Sender(ABC):
    """Offers the newest version to rollout servers."""

    @classmethod
    @abstractmethod
    def make(cls, device: torch.device, settings: Settings) -> Self:
        """The sender of a run whose learner computes on `device`. Raises `UnusableError`."""

    @abstractmethod
    def load(self, version: int, weights: Mapping[str, Tensor]) -> Layout | None:
        """Take a version in place of the older one. `weights` are in CPU memory and are not changed afterwards. Returns
        how the version is packed, if it is."""

    @abstractmethod
    def offer(self) -> Offer | None:
        """How servers get at it, beyond its folder. Stays the same for the sender's life; asked for after `load`."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Stop serving."""


def require_cuda(device: torch.device) -> None:
    """Raise `UnusableError` without a CUDA device."""
    if device.type != "cuda":
        raise UnusableError("the learner has no CUDA device", "Run the learner on a GPU")

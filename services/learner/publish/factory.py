"""Maps `weights.transport` to a sender: `SENDER` in the module of that name in this package."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from services.learner.publish.base import Sender, UnusableError
from services.learner.publish.store import StoreSender
from services.runtime.settings import Settings


def make_sender(transport: str, device: torch.device, settings: Settings, warn: Callable[[str], None]) -> Sender:
    """The sender for `transport`, a name in `TRANSPORTS`. If it cannot work, warns and returns the store's sender."""
    kind: type[Sender] = import_module(f"services.learner.publish.{transport}").SENDER
    try:
        return kind.make(device, settings)
    except UnusableError as error:
        warn(
            f"weights.transport is {transport}, but {error.reason}. Servers load weights from the store instead. "
            f"{error.remedy}, or set weights.transport to store."
        )
        return StoreSender()

"""From `weights.transport` to a sender: the module here of that name, and its `SENDER`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from services.learner.publish.base import Sender, UnusableError
from services.learner.publish.store import StoreSender
from services.runtime.settings import Settings


def make_sender(transport: str, device: torch.device, settings: Settings, warn: Callable[[str], None]) -> Sender:
    """The sender of `transport`, a name in `TRANSPORTS`; the store's, with a warning, if it cannot work."""
    kind: type[Sender] = import_module(f"services.learner.publish.{transport}").SENDER
    try:
        return kind.make(device, settings)
    except UnusableError as error:
        warn(
            f"weights.transport is {transport}, but {error.reason}, so weights go by the store. {error.remedy}, or set "
            "weights.transport to store."
        )
        return StoreSender()

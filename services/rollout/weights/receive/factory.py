"""Maps an update's transport to a receiver: `RECEIVER` in the module of that name in this package."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from torch import Tensor

from services.rollout.weights.receive.base import Receiver, Update, Worker


class Receivers:
    """The receivers of one worker, each created for the first update that needs it, and kept."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._made: dict[str, Receiver] = {}

    def receive(self, update: Update) -> Iterator[tuple[str, Tensor]]:
        """Like `Receiver.receive`, by the transport that the update names."""
        transport = "store" if update.transfer is None else update.transfer.offer.transport
        if transport not in self._made:
            kind: type[Receiver] = import_module(f"services.rollout.weights.receive.{transport}").RECEIVER
            self._made[transport] = kind(self._worker)
        return self._made[transport].receive(update)

    def close(self) -> None:
        """Release the learner's memory."""
        for receiver in self._made.values():
            receiver.close()

"""The interface of a weight transport on the rollout server's side, in vLLM's worker process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.contracts.errors import TurnoutError
from services.contracts.transports.registry import Transfer
from services.runtime.weights.store import Marks


class TransferError(TurnoutError):
    """The transport did not deliver the version; the model is unchanged."""


@dataclass(frozen=True, slots=True)
class Worker:
    """The vLLM worker that receives weights."""

    device: torch.device
    number: int = 0
    """Index of the worker across tensor, pipeline and data parallelism."""
    num_workers: int = 1
    model: str = ""
    """Folder or hub name of the run's base model."""
    dtype: torch.dtype = torch.bfloat16
    """The run's dtype."""
    nccl_environment: Callable[[], AbstractContextManager[Any]] = nullcontext
    """A context with the same NCCL variables as the learner's, since NCCL hangs if the two sides differ."""


@dataclass(frozen=True, slots=True)
class Update:
    """One version to load."""

    folder: Path
    """The version in the weight store."""
    checksum: str
    """`blake3:<hex>` that its manifest must have."""
    transfer: Transfer | None = None
    """How to get it from the learner itself; None to read the folder."""
    marks: Marks = field(default_factory=dict)
    """Marks of files that the server has already verified, and that need not be read twice."""


class Receiver(ABC):
    """Receives versions by one transport."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    @abstractmethod
    def receive(self, update: Update) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) pairs of the whole model, all verified before the first is returned.

        Raises:
            TurnoutError: the version did not arrive, or is not what was announced; the model is unchanged.
        """

    def close(self) -> None:  # noqa: B027 - most receivers have nothing to close
        """Release the learner's memory."""


def any_refuses(refuses: bool, group: Any) -> bool:
    """Whether one of the workers in `group`, a group for CPU tensors, rejects an update. Collective."""
    flag = torch.tensor([int(refuses)], device="cpu")
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=group)
    return bool(flag)

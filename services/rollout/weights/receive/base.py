"""What a weight transport is on the rollout server's side, within vLLM's worker process."""

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
    """The transport did not bring the version; the model is untouched."""


@dataclass(frozen=True, slots=True)
class Worker:
    """The worker of vLLM that receives."""

    device: torch.device
    number: int = 0
    """Counts over tensor, pipeline and data parallel."""
    num_workers: int = 1
    model: str = ""
    """Folder or hub name of the run's base model."""
    dtype: torch.dtype = torch.bfloat16
    """The run's type."""
    nccl_environment: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Gives NCCL's variables as the learner has them: NCCL hangs if the two sides differ."""


@dataclass(frozen=True, slots=True)
class Update:
    """One version to take."""

    folder: Path
    """The version in the weight store."""
    checksum: str
    """`blake3:<hex>` that its manifest must have."""
    transfer: Transfer | None = None
    """How to take it from the learner itself; None: read the folder."""
    marks: Marks = field(default_factory=dict)
    """From the server, which has verified the folder already: files that bear them are not read twice."""


class Receiver(ABC):
    """Takes versions by one transport."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    @abstractmethod
    def receive(self, update: Update) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) pairs of the whole model, verified before the first of them.

        Raises:
            TurnoutError: the version did not come, or is not what was promised; the model is untouched.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Release the learner's memory."""


def any_refuses(refuses: bool, group: Any) -> bool:
    """Whether one of the workers in `group`, a group for CPU tensors, refuses an update. All of them must ask."""
    flag = torch.tensor([int(refuses)], device="cpu")
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=group)
    return bool(flag)

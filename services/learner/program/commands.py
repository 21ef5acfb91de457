"""Commands from rank 0 to the other ranks, as msgpack rather than pickle.

While rank 0 waits for groups, it sends `Wait` every few seconds, so that no rank waits long in a collective and a dead
rank is noticed.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import torch
import torch.distributed as distributed

from services.learner.packing.sequence import TrainSequence

BEAT_SECONDS = 4.0
T = TypeVar("T")


class Start(msgspec.Struct, frozen=True):
    """Sent once, before anything else."""

    config: str
    """The run configuration as JSON."""
    checkpoint: str | None
    """Folder of the checkpoint to continue from."""


class Wait(msgspec.Struct, frozen=True, tag=True):
    """Nothing to do yet."""


class Step(msgspec.Struct, frozen=True, tag=True):
    """Train one step."""

    minibatches: list[list[TrainSequence]]
    checkpoint: bool
    """Export the whole state afterwards."""
    renew_teacher: bool = False
    """Make the teacher a copy of the student first."""


class Save(msgspec.Struct, frozen=True, tag=True):
    """Export the whole state for a checkpoint outside the schedule."""


class Finish(msgspec.Struct, frozen=True, tag=True):
    """Leave the loop."""


Command = Wait | Step | Save | Finish


def send(command: Command, device: torch.device) -> None:
    """Rank 0's side of `receive`."""
    _broadcast(msgspec.msgpack.encode(command), device)


def receive(device: torch.device) -> Command:
    """The next command, on ranks other than 0."""
    return decode(_broadcast(None, device), Command)


def send_start(start: Start, device: torch.device) -> None:
    """Rank 0's side of `receive_start`."""
    _broadcast(msgspec.msgpack.encode(start), device)


def receive_start(device: torch.device) -> Start:
    """The start message, on ranks other than 0."""
    return decode(_broadcast(None, device), Start)


def decode(payload: bytes, kind: type[T] | object) -> T:
    return msgspec.msgpack.decode(payload, type=kind)


def _broadcast(payload: bytes | None, device: torch.device) -> bytes:
    if distributed.get_world_size() == 1:
        assert payload is not None
        return payload
    size = torch.tensor([len(payload or b"")], dtype=torch.int64, device=device)
    distributed.broadcast(size, src=0)
    if payload is None:
        data = torch.empty(int(size.item()), dtype=torch.uint8, device=device)
    else:
        data = torch.frombuffer(bytearray(payload), dtype=torch.uint8).to(device)
    distributed.broadcast(data, src=0)
    return payload if payload is not None else data.cpu().numpy().tobytes()

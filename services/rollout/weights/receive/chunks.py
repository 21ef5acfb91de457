"""Receives versions as chunks of bytes from the learner itself.

Whatever the transport, each chunk is first copied to our own memory, then its digest is compared with the one in the
layout, whose file the manifest's checksum covers. The caller gets tensors only once all chunks are verified, so a fault
leaves the model unchanged and the API pushes from the store. Copies stay on the GPU if there is room, otherwise they
are in CPU memory.

vLLM's own engines are not used, because they pickle handles and addresses, wait without a timeout, and load what they
receive without verification. Ranks and packing follow them (vLLM 0.32). Tested on the CPU, but has never run on a GPU.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from services.contracts.transports.layout import LAYOUT_FILE, Layout, parse_layout
from services.rollout.weights.receive.base import Receiver, TransferError, Update, Worker
from services.runtime.torch.side_streams import SideStreams
from services.runtime.weights.digest import digest
from services.runtime.weights.store import read_verified

T = TypeVar("T")
TRANSFER_SECONDS = 20.0
"""Timeout of a whole transfer, in addition to the time for its bytes. The server does not sample meanwhile."""
SLOWEST = 1e9
"""Slowest acceptable transfer, in bytes per second; gives a large model more time."""
SPARE_BYTES = 2 << 30
"""Free GPU memory that verified copies leave to vLLM while it loads."""


class ChunkReceiver(Receiver):
    """Verifies and unpacks chunks; subclasses fetch them."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self._streams = SideStreams(torch, worker.device)

    @abstractmethod
    def chunks(self, offer: Any, attempt: str, version: int, layout: Layout) -> Iterator[Tensor]:
        """The bytes of each chunk in turn, in our own memory. Runs in a thread that may be abandoned.

        Args:
            offer: the transport's offer.
            attempt: 32 hex digits, different for each attempt.
        """

    def environment(self) -> AbstractContextManager[Any]:
        """A context for the whole transfer, entered in the thread that waits for it."""
        return nullcontext()

    def receive(self, update: Update) -> Iterator[tuple[str, Tensor]]:
        """Times out after `TRANSFER_SECONDS` plus the time for the version's bytes."""
        manifest, data = read_verified(update.folder, LAYOUT_FILE, update.checksum)
        layout, asked, device = parse_layout(data), update.transfer, self.worker.device
        assert asked is not None, "the update must name a transport"

        def collect() -> list[Tensor]:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # per thread
            source = self.chunks(asked.offer, asked.attempt, manifest.version, layout)
            with self._streams.one():  # a broadcast that hangs on the default stream would block vLLM
                return verified(source, layout, stays=has_room(layout.bytes, device))

        # In the waiting thread, so that an abandoned one cannot restore old variables in the middle of the next
        # transfer.
        with self.environment():
            chunks = within(TRANSFER_SECONDS + layout.bytes / SLOWEST, collect)
        return unpacked(layout, chunks)


def verified(source: Iterator[Tensor], layout: Layout, *, stays: bool) -> list[Tensor]:
    """All chunks, each compared with its digest, and moved to CPU memory unless `stays`."""
    kept = []
    for number, (data, chunk) in enumerate(zip(source, layout.chunks, strict=True)):
        if digest(data.view(torch.int64)) != chunk.digest:
            raise TransferError(f"Chunk {number} does not match its digest.")
        kept.append(data if stays else data.cpu())
    return kept


def unpacked(layout: Layout, chunks: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) pairs that are views of the chunks' bytes. Removes each chunk from the list, so that its memory is
    freed together with its tensors."""
    for chunk in layout.chunks:
        data = chunks.pop(0)
        if data.is_cuda:  # allocated on the transfer's stream, but read on the caller's
            data.record_stream(torch.cuda.current_stream(data.device))
        for tensor in chunk.tensors:
            flat = data[tensor.offset : tensor.offset + tensor.bytes]
            yield tensor.name, flat.view(getattr(torch, tensor.dtype)).view(tensor.shape)


def has_room(num_bytes: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    torch.cuda.empty_cache()  # memory that torch only caches, such as an earlier transfer's chunks, counts as room
    return torch.cuda.mem_get_info(device)[0] > num_bytes + SPARE_BYTES


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, run in a thread that is abandoned after `seconds`, because joining an NCCL group has no
    timeout.

    Raises:
        TransferError: the time is up, or torch failed.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - passed on to the caller
            future.set_exception(error)

    threading.Thread(target=run, name="transfer", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        raise TransferError(f"Timed out after {seconds:.0f} s waiting for the transfer.") from error
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TransferError(f"{type(error).__name__}: {str(error).split(chr(10))[0]}") from error

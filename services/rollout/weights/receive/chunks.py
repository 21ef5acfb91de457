"""Versions that come as chunks of bytes from the learner itself.

Whatever the transport, each chunk is first copied to memory of our own, then its digest is compared with the layout's,
whose file the manifest's checksum covers. Only when all chunks are right does the caller get tensors, so a fault leaves
the model as it was and the API pushes from the store. Copies stay on the GPU if there is room, else in CPU memory.

vLLM's own engines are not used as they are: they pickle handles or the meeting of ranks, wait without limit, and load
what they receive unverified. Ranks and packing follow them (vLLM 0.32). Tested on the CPU, never yet run on a GPU.
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
"""For all of one transfer, in addition to the time for its bytes; the server samples nothing meanwhile."""
SLOWEST = 1e9
"""Bytes a second that a transfer must reach: a large model has longer."""
SPARE_BYTES = 2 << 30
"""Free GPU memory that verified copies leave for vLLM's own work while it loads."""


class ChunkReceiver(Receiver):
    """A transport says how chunks come; this verifies and unpacks them."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self._streams = SideStreams(torch, worker.device)

    @abstractmethod
    def chunks(self, offer: Any, attempt: str, version: int, layout: Layout) -> Iterator[Tensor]:
        """The bytes of each chunk in turn, in memory of our own. Runs in a thread that may be left behind.

        Args:
            offer: the transport's.
            attempt: 32 hex digits, new for each try.
        """

    def environment(self) -> AbstractContextManager[Any]:
        """Held for the whole transfer, in the thread that waits for it."""
        return nullcontext()

    def receive(self, update: Update) -> Iterator[tuple[str, Tensor]]:
        """Gives up after `TRANSFER_SECONDS` and the time for the version's bytes."""
        manifest, data = read_verified(update.folder, LAYOUT_FILE, update.checksum)
        layout, asked, device = parse_layout(data), update.transfer, self.worker.device
        assert asked is not None, "the update names a transport"

        def collect() -> list[Tensor]:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # counts for this thread
            source = self.chunks(asked.offer, asked.attempt, manifest.version, layout)
            with self._streams.one():  # a broadcast that hangs on the default one would hold up vLLM
                return verified(source, layout, stays=has_room(layout.bytes, device))

        # In the thread that waits, so that one that is left behind cannot put older variables back in the middle of the
        # next transfer.
        with self.environment():
            chunks = within(TRANSFER_SECONDS + layout.bytes / SLOWEST, collect)
        return unpacked(layout, chunks)


def verified(source: Iterator[Tensor], layout: Layout, *, stays: bool) -> list[Tensor]:
    """All chunks, each compared with its digest; moved to CPU memory unless it `stays`."""
    kept = []
    for number, (data, chunk) in enumerate(zip(source, layout.chunks, strict=True)):
        if digest(data.view(torch.int64)) != chunk.digest:
            raise TransferError(f"Chunk {number} differs from its digest.")
        kept.append(data if stays else data.cpu())
    return kept


def unpacked(layout: Layout, chunks: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Views of the chunks' bytes as the tensors that they are. Takes each chunk out of the list, so that its memory is
    free again once its tensors are."""
    for chunk in layout.chunks:
        data = chunks.pop(0)
        if data.is_cuda:  # allocated on the transfer's stream, read on the caller's
            data.record_stream(torch.cuda.current_stream(data.device))
        for tensor in chunk.tensors:
            flat = data[tensor.offset : tensor.offset + tensor.bytes]
            yield tensor.name, flat.view(getattr(torch, tensor.dtype)).view(tensor.shape)


def has_room(num_bytes: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    torch.cuda.empty_cache()  # what torch only keeps, an earlier transfer's chunks among it, is room too
    return torch.cuda.mem_get_info(device)[0] > num_bytes + SPARE_BYTES


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread that is left behind when it takes too long: NCCL's joining knows no limit.

    Raises:
        TransferError: too late, or torch failed.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - the thread's border: the caller gets it
            future.set_exception(error)

    threading.Thread(target=run, name="transfer", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        raise TransferError(f"The transfer took longer than {seconds:.0f} s.") from error
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TransferError(f"{type(error).__name__}: {str(error).split(chr(10))[0]}") from error

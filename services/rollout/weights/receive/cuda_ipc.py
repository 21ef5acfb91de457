"""Fast weight transports, the rollout server's side, within vLLM's worker process.

Whatever the transport, each chunk is first copied to memory of our own, then its digest is compared with the layout's,
whose file the manifest's checksum covers. Only when all chunks are right does the caller get tensors, so a fault leaves
the model as it was and the API pushes from the store. Copies stay on the GPU where there is room, else in CPU memory.

vLLM's own engines are not used as they are: they pickle handles or the meeting of ranks, wait without limit, and load
what they receive unverified. Ranks and packing follow them (vLLM 0.32). Tested on the CPU, never yet run on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from services.contracts.errors import TurnoutError
from services.contracts.offers import (
    LAYOUT_FILE,
    Ask,
    IpcOffer,
    Layout,
    NcclOffer,
    parse_layout,
    parse_transfer,
    to_bytes,
)
from services.runtime.torch.process_group import device_name, make_group
from services.runtime.torch.side_streams import SideStreams
from services.runtime.weights.digest import digest
from services.runtime.weights.store import read_verified

T = TypeVar("T")
WAIT = timedelta(seconds=10)
"""For each single wait: answer, joining, one broadcast."""
TRANSFER_SECONDS = 20.0
"""For all of one transfer, beside the time for its bytes; the server samples nothing meanwhile."""
SLOWEST = 1e9
"""Bytes a second that a transfer must reach: a large model has longer."""
SPARE_BYTES = 2 << 30
"""Free GPU memory that verified copies leave for vLLM's own work while it loads."""


class TransferError(TurnoutError):
    """The fast transport did not bring the version; the model is untouched."""


class Receiver:
    """Takes versions by either transport. One for each worker of vLLM."""

    def __init__(
        self,
        device: torch.device,
        worker: int = 0,
        num_workers: int = 1,
        open_buffer: Callable[[IpcOffer], Tensor] | None = None,
        nccl_environment: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """`worker` of `num_workers` counts over tensor, pipeline and data parallel. `open_buffer` maps the learner's
        memory; tests put something in its place. `nccl_environment` gives NCCL's variables as the learner has them:
        NCCL hangs where two sides differ."""
        self._device = device
        self._streams = SideStreams(torch, device)
        self._worker = worker
        self._num_workers = num_workers
        self._open = open_buffer or open_cuda
        self._nccl_environment = nccl_environment
        self._mapped: tuple[IpcOffer, Tensor] | None = None

    def receive(self, folder: Path, checksum: str, transfer: Any) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) pairs of the version that `folder` and `checksum` name, verified.

        Raises:
            TurnoutError: anything went wrong, or took longer than `TRANSFER_SECONDS` and the time for its bytes.
        """
        manifest, data = read_verified(folder, LAYOUT_FILE, checksum)
        layout, asked = parse_layout(data), parse_transfer(transfer)

        def collect() -> list[Tensor]:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # counts for this thread
            if isinstance(asked.offer, IpcOffer):
                source = self._copies(asked.offer, layout)
            else:
                source = self._broadcasts(asked.offer, Ask(asked.attempt, manifest.version, self._num_workers), layout)
            with self._streams.one():  # a broadcast that hangs on the default one would hold up vLLM
                return verified(source, layout, stays=has_room(layout.bytes, self._device))

        # Round all of it, since the first broadcast makes the communicator; and in the thread that waits, so that one
        # that is left behind cannot put older variables back in the middle of the next transfer.
        with nullcontext() if isinstance(asked.offer, IpcOffer) else self._nccl_environment():
            chunks = within(TRANSFER_SECONDS + layout.bytes / SLOWEST, collect)
        return unpacked(layout, chunks)

    def close(self) -> None:
        """Let go of the learner's memory."""
        self._mapped = None

    def _copies(self, offer: IpcOffer, layout: Layout) -> Iterator[Tensor]:
        if self._mapped is None or self._mapped[0] != offer:
            self._mapped = None
            self._mapped = (offer, self._open(offer))  # once for each export, as torch's reference count asks
        buffer, start = self._mapped[1], 0
        if len(buffer) != layout.bytes:
            raise TransferError(f"The learner's buffer has {len(buffer)} bytes, the version {layout.bytes}.")
        for chunk in layout.chunks:
            yield buffer[start : start + chunk.bytes].to(self._device, copy=True)
            start += chunk.bytes

    def _broadcasts(self, offer: NcclOffer, ask: Ask, layout: Layout) -> Iterator[Tensor]:
        from torch.distributed.distributed_c10d import BroadcastOptions

        check_devices(offer.device, device_name(torch, self._device))
        store = TCPStore(offer.address, offer.port, is_master=False, timeout=WAIT)
        if self._worker == 0:
            store.set(f"ask/{store.add('asks', 1)}", msgspec.json.encode(ask).decode())
        answer = store.get(f"answer/{ask.attempt}").decode()
        if answer != "go":
            raise TransferError(f"The learner refused: {answer}.")
        rank = 1 + self._worker
        group = make_group(torch, PrefixStore(ask.attempt, store), rank, 1 + ask.num_workers, self._device, WAIT)
        options = BroadcastOptions()
        options.rootRank = 0
        try:
            for chunk in layout.chunks:
                buffer = torch.empty(chunk.bytes, dtype=torch.uint8, device=self._device)
                group.broadcast([buffer], options).wait(WAIT)
                yield buffer
            store.set(f"done/{ask.attempt}/{rank}", "1")
        finally:
            group.abort()


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


def any_refuses(refuses: bool, group: Any) -> bool:
    """Whether one of the workers in `group`, a group for CPU tensors, refuses an update. All of them must ask."""
    flag = torch.tensor([int(refuses)], device="cpu")
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=group)
    return bool(flag)


def check_devices(theirs: str, ours: str) -> None:
    """Raise `TransferError` where NCCL cannot work between the two."""
    if (theirs == "cpu") != (ours == "cpu"):
        raise TransferError("weights.transport nccl needs a CUDA device here and at the learner. Set it to store.")
    if theirs == ours != "cpu":
        raise TransferError(
            "weights.transport nccl needs a GPU other than the learner's. Set it to cuda_ipc, or use another GPU."
        )


def open_cuda(offer: IpcOffer) -> Tensor:
    """The learner's buffer, mapped on the GPU that it lies on. Fields in the order of torch's `rebuild_cuda_tensor`."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    here = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
    if offer.device not in here:
        raise TransferError(
            f"weights.transport cuda_ipc needs the learner's GPU {offer.device}; visible here: "
            f"{', '.join(here) or 'none'}. Run both on one machine and name that GPU in "
            "CUDA_VISIBLE_DEVICES, or set it to store."
        )
    buffer: Tensor = rebuild_cuda_tensor(
        torch.Tensor,
        (offer.storage_bytes,),
        (1,),
        0,
        torch.storage.TypedStorage,
        torch.uint8,
        here.index(offer.device),
        to_bytes(offer.handle, "handle"),
        offer.storage_bytes,
        offer.storage_offset_bytes,
        False,
        to_bytes(offer.ref_counter, "ref_counter"),
        offer.ref_counter_offset,
        to_bytes(offer.event, "event"),
        offer.event_sync,
    )
    return buffer

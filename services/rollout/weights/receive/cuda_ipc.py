"""Transport `cuda_ipc`, the rollout server's side: copies from the learner's buffer on the same GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from services.contracts.transports.base import to_bytes
from services.contracts.transports.cuda_ipc import IpcOffer
from services.contracts.transports.layout import Layout
from services.rollout.weights.receive.base import TransferError, Worker
from services.rollout.weights.receive.chunks import ChunkReceiver


class IpcReceiver(ChunkReceiver):
    """Maps the learner's memory once and keeps the mapping."""

    def __init__(self, worker: Worker, open_buffer: Callable[[IpcOffer], Tensor] | None = None) -> None:
        """`open_buffer` maps the learner's memory; tests replace it."""
        super().__init__(worker)
        self._open = open_buffer or open_cuda
        self._mapped: tuple[IpcOffer, Tensor] | None = None

    def chunks(self, offer: IpcOffer, attempt: str, version: int, layout: Layout) -> Iterator[Tensor]:
        if self._mapped is None or self._mapped[0] != offer:
            self._mapped = None
            self._mapped = (offer, self._open(offer))  # once per export, as torch's reference count requires
        buffer, start = self._mapped[1], 0
        if len(buffer) != layout.bytes:
            raise TransferError(f"The learner's buffer has {len(buffer)} bytes, but the version has {layout.bytes}.")
        for chunk in layout.chunks:
            yield buffer[start : start + chunk.bytes].to(self.worker.device, copy=True)
            start += chunk.bytes

    def close(self) -> None:
        self._mapped = None


def open_cuda(offer: IpcOffer) -> Tensor:
    """The learner's buffer, mapped on its own GPU. The fields are in the order of torch's `rebuild_cuda_tensor`."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    here = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
    if offer.device not in here:
        raise TransferError(
            f"weights.transport cuda_ipc needs the learner's GPU {offer.device}, but the GPUs visible here are: "
            f"{', '.join(here) or 'none'}. Run both services on one machine and include that GPU in "
            "CUDA_VISIBLE_DEVICES, or set weights.transport to store."
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


RECEIVER = IpcReceiver

"""Transport `cuda_ipc`, the learner's side: the newest version in GPU memory that servers on this machine map.

Written against vLLM 0.32's transfer engines and torch's handles. Tested on the CPU, but has never run on a GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor

from services.contracts.transports.base import Offer, to_text
from services.contracts.transports.cuda_ipc import IpcOffer
from services.contracts.transports.layout import Layout
from services.learner.publish.base import Sender, UnusableError, require_cuda
from services.learner.publish.chunks import fill, plan, with_digest
from services.runtime.settings import Settings
from services.runtime.torch.process_group import device_name
from services.runtime.torch.side_streams import SideStreams


class IpcSender(Sender):
    """One buffer in the learner's GPU memory, as large as the weights, exported once and overwritten by each version.

    Servers copy from it and compare digests. A server that was still copying when the next version arrived finds a
    different digest and loads the version from the store.
    """

    def __init__(self, device: torch.device, share: Callable[[Tensor], IpcOffer] | None = None) -> None:
        """`share` exports the buffer; tests replace it."""
        self._device = device
        self._streams = SideStreams(torch, device)
        self._share = share or share_cuda
        self._buffer: Tensor | None = None
        self._offer: IpcOffer | None = None

    @classmethod
    def make(cls, device: torch.device, settings: Settings) -> Self:
        require_cuda(device)
        if name := expandable_segments():
            raise UnusableError(
                f"{name} sets expandable_segments:True, and torch shares such memory with other processes as one open "
                "file per 2 to 20 MB",
                "Remove the setting for the learner, set weights.transport to nccl",
            )
        return cls(device)

    def load(self, version: int, weights: Mapping[str, Tensor]) -> Layout:
        chunks = plan(weights)
        num_bytes = sum(chunk.bytes for chunk in chunks)
        with self._streams.one():  # the default stream would queue behind training's kernels
            if self._buffer is None:
                self._buffer = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
                self._offer = self._share(self._buffer)
            assert len(self._buffer) == num_bytes, "a run's weights keep their shapes"
            done, start = [], 0
            for chunk in chunks:
                part = self._buffer[start : start + chunk.bytes]
                fill(part, chunk, weights)
                done.append(with_digest(chunk, part))  # reads the digest back, so the copy is finished by then
                start += chunk.bytes
        return Layout(done)

    def offer(self) -> Offer:
        assert self._offer is not None, "load must come first"
        return self._offer

    def close(self) -> None:
        """Keep the buffer until the process exits, so that no server's mapping loses its memory."""


def share_cuda(buffer: Tensor) -> IpcOffer:
    """torch's CUDA IPC handle for a buffer as plain fields (vLLM's own engine pickles the same tuple)."""
    from torch.multiprocessing.reductions import reduce_tensor

    _, values = reduce_tensor(buffer)
    handle, storage_bytes, offset = values[7:10]
    counter, counter_offset, event, event_sync = values[11:15]
    return IpcOffer(
        device=device_name(torch, buffer.device),
        handle=to_text(handle),
        storage_bytes=storage_bytes,
        storage_offset_bytes=offset,
        ref_counter=to_text(counter),
        ref_counter_offset=counter_offset,
        event=to_text(event),
        event_sync=event_sync,
    )


def expandable_segments() -> str:
    """The environment variable that enables torch's expandable segments; empty if none does."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    return next((name for name in names if re.search(r"expandable_segments\s*:\s*True", os.environ.get(name, ""))), "")


SENDER = IpcSender

"""Fast weight transports, the learner's side: packing the newest weights, and offering them to rollout servers.

The store stays the source of truth: every version is published there too, and a server that gets nothing here loads it
from there. All of this runs on the writer thread or on threads of its own, from the snapshot in CPU memory that the
store is written from; training shares the GPU with it and waits for nothing.

Written against vLLM 0.32's transfer engines and torch's handles; tested on the CPU, never yet run on a GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
import torch
from torch import Tensor

from services.contracts.offers import ALIGNMENT, Chunk, IpcOffer, Layout, Offer, PackedTensor, to_text
from services.contracts.run_config import RunConfig
from services.runtime.address import url_of
from services.runtime.settings import Settings
from services.runtime.torch.process_group import device_name
from services.runtime.torch.side_streams import SideStreams
from services.runtime.weights.digest import digest

CHUNK_BYTES = 256 << 20
"""Tensors are packed up to this size; a larger one goes alone. Bounds the memory of a broadcast."""


class Sender(Protocol):
    """Holds the newest version for servers that fetch it from the learner."""

    def load(self, version: int, weights: Mapping[str, Tensor]) -> Layout:
        """Take a version in place of the older one. `weights` lie in CPU memory and are not changed afterwards."""

    def offer(self) -> Offer:
        """How servers get at it. Stays the same for the sender's life; asked for after the first `load`."""

    def close(self) -> None:
        """Stop serving."""


def make_sender(
    config: RunConfig, device: torch.device, settings: Settings, warn: Callable[[str], None]
) -> Sender | None:
    """The sender that `weights.transport` asks for; None for the store alone, with a warning where it cannot work."""
    transport = config.weights.transport
    if transport == "store":
        return None
    if device.type != "cuda":
        warn(
            f"weights.transport is {transport}, but the learner has no CUDA device, so weights go by the store. "
            "Run the learner on a GPU, or set weights.transport to store."
        )
        return None
    if transport == "cuda_ipc":
        if name := expandable_segments():
            warn(
                f"weights.transport is cuda_ipc, but {name} sets expandable_segments:True, whose memory torch shares "
                "with other processes as one open file for each 2 to 20 MB, so weights go by the store. Take it "
                "out for the learner, or set weights.transport to nccl or store."
            )
            return None
        return IpcSender(device)
    from services.learner.publish.nccl import NcclSender

    return NcclSender(urlsplit(settings.advertise_url or url_of(settings.host, 0)).hostname or settings.host, device)


def expandable_segments() -> str:
    """The variable that turns torch's expandable segments on; empty where none does."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    return next((name for name in names if re.search(r"expandable_segments\s*:\s*True", os.environ.get(name, ""))), "")


def plan(weights: Mapping[str, Tensor], chunk_bytes: int | None = None) -> list[Chunk]:
    """Where each tensor goes, in chunks of `chunk_bytes` (`CHUNK_BYTES` where None). Digests are still empty."""
    limit = CHUNK_BYTES if chunk_bytes is None else chunk_bytes
    chunks: list[Chunk] = []
    tensors: list[PackedTensor] = []
    size = 0
    for name, tensor in weights.items():
        if tensors and size + tensor.nbytes > limit:
            chunks.append(Chunk(size, "", tensors))
            tensors, size = [], 0
        tensors.append(PackedTensor(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), size))
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    if tensors:
        chunks.append(Chunk(size, "", tensors))
    Layout(chunks).check()
    return chunks


def fill(buffer: Tensor, chunk: Chunk, weights: Mapping[str, Tensor]) -> None:
    """Copy a chunk's tensors into `buffer` (uint8, `chunk.bytes` long, on any device)."""
    buffer.zero_()
    for tensor in chunk.tensors:
        flat = weights[tensor.name].detach().reshape(-1).view(torch.uint8)
        buffer[tensor.offset : tensor.offset + tensor.bytes].copy_(flat)


def with_digest(chunk: Chunk, buffer: Tensor) -> Chunk:
    return msgspec.structs.replace(chunk, digest=digest(buffer.view(torch.int64)))


class IpcSender:
    """One buffer in the learner's GPU memory, as large as the weights, exported once and overwritten by each version.

    Servers copy from it and compare digests; one that was still copying when the next version came sees another digest
    and takes the store.
    """

    def __init__(self, device: torch.device, share: Callable[[Tensor], IpcOffer] | None = None) -> None:
        """`share` exports the buffer; tests put something in its place."""
        self._device = device
        self._streams = SideStreams(torch, device)
        self._share = share or share_cuda
        self._buffer: Tensor | None = None
        self._offer: IpcOffer | None = None

    def load(self, version: int, weights: Mapping[str, Tensor]) -> Layout:
        chunks = plan(weights)
        num_bytes = sum(chunk.bytes for chunk in chunks)
        with self._streams.one():  # the default one would queue behind training's kernels
            if self._buffer is None:
                self._buffer = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
                self._offer = self._share(self._buffer)
            assert len(self._buffer) == num_bytes, "a run's weights keep their shapes"
            done, start = [], 0
            for chunk in chunks:
                part = self._buffer[start : start + chunk.bytes]
                fill(part, chunk, weights)
                done.append(with_digest(chunk, part))  # reads the result back, so the copy has ended
                start += chunk.bytes
        return Layout(done)

    def offer(self) -> Offer:
        assert self._offer is not None, "load comes first"
        return self._offer

    def close(self) -> None:
        """Nothing waits; the buffer goes with the process, so that no server's mapping loses its ground before."""


def share_cuda(buffer: Tensor) -> IpcOffer:
    """torch's CUDA IPC handle of a buffer, as plain fields (vLLM's own engine would pickle the same tuple)."""
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

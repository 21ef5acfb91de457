"""Packs a version into chunks of bytes, for transports that send it themselves."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch
from torch import Tensor

from services.contracts.transports.layout import ALIGNMENT, Chunk, Layout, PackedTensor
from services.runtime.weights.digest import digest

CHUNK_BYTES = 256 << 20
"""Tensors are packed into chunks up to this size; a larger tensor gets its own chunk. Bounds a broadcast's memory."""


def plan(weights: Mapping[str, Tensor], chunk_bytes: int | None = None) -> list[Chunk]:
    """Assign each tensor a place in chunks of `chunk_bytes` (`CHUNK_BYTES` if None). Leaves the digests empty."""
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

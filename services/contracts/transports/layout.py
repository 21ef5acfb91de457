"""How a version is packed for a transport that carries bytes from the learner itself.

The layout is in the version's folder as `transfer.json`, so the manifest's checksum covers it and every digest in it.
"""

from __future__ import annotations

import msgspec

from services.contracts.errors import MalformedMessageError
from services.contracts.transports.base import Name, Size

LAYOUT_FILE = "transfer.json"
ALIGNMENT = 16
"""Tensors begin and chunks end at multiples of this many bytes, so that any dtype can be viewed in place."""
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a value, by torch's name of the dtype."""


class PackedTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor within its chunk."""

    name: Name
    """Parameter name as in a Hugging Face checkpoint."""
    dtype: str
    shape: list[Size]
    offset: Size
    """Offset in the chunk, in bytes."""

    @property
    def bytes(self) -> int:
        count = ITEM_BYTES[self.dtype]
        for size in self.shape:
            count *= size
        return count


class Chunk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tensors that travel as one array of bytes."""

    bytes: Size
    digest: str
    """`services.runtime.weights.digest` of all bytes, the zeros between tensors included."""
    tensors: list[PackedTensor]


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version as a row of chunks."""

    chunks: list[Chunk]

    @property
    def bytes(self) -> int:
        return sum(chunk.bytes for chunk in self.chunks)

    def check(self) -> None:
        """Raise `MalformedMessageError` if tensors overlap, leave their chunk or have an unknown dtype."""
        for chunk in self.chunks:
            end = 0
            if chunk.bytes % ALIGNMENT:
                raise MalformedMessageError(f"A chunk has {chunk.bytes} bytes, not a multiple of {ALIGNMENT}.")
            for tensor in chunk.tensors:
                if tensor.dtype not in ITEM_BYTES:
                    raise MalformedMessageError(f"Tensor {tensor.name} has dtype {tensor.dtype}.")
                if tensor.offset < end or tensor.offset % ALIGNMENT or tensor.offset + tensor.bytes > chunk.bytes:
                    raise MalformedMessageError(f"Tensor {tensor.name} does not fit at byte {tensor.offset}.")
                end = tensor.offset + tensor.bytes


def parse_layout(data: bytes) -> Layout:
    """The checked layout. Raises `MalformedMessageError`."""
    try:
        layout = msgspec.json.decode(data, type=Layout)
    except msgspec.DecodeError as error:
        raise MalformedMessageError(f"{LAYOUT_FILE} is not valid: {error}.") from error
    layout.check()
    return layout

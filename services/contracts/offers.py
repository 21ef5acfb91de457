"""Fast weight transports: how a version is packed, and how the learner offers it to rollout servers.

The layout lies in the version's folder as `transfer.json`, so the manifest's checksum covers it and every digest in it.
The offer is the field `transfer` of the `weights` hash, as JSON; the API hands it on within `update_info`. Both are
plain numbers and texts and are checked once, where they arrive.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any

import msgspec

from services.contracts.errors import MalformedMessageError

LAYOUT_FILE = "transfer.json"
ALIGNMENT = 16
"""Tensors begin, and chunks end, at multiples of so many bytes: any dtype can be viewed in place."""
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a value, by torch's name of the dtype."""
_REF_COUNTER = re.compile(rb"/[A-Za-z0-9_]{1,200}")
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class PackedTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor within its chunk."""

    name: _Name
    """Parameter name as in a Hugging Face checkpoint."""
    dtype: str
    shape: list[_Size]
    offset: _Size
    """Bytes from the chunk's beginning."""

    @property
    def bytes(self) -> int:
        count = ITEM_BYTES[self.dtype]
        for size in self.shape:
            count *= size
        return count


class Chunk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tensors that travel as one array of bytes."""

    bytes: _Size
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
        """Raise `MalformedMessageError` where tensors overlap, leave their chunk or have an unknown dtype."""
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


class IpcOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="transport", tag="cuda_ipc"):
    """A buffer in the learner's GPU memory that holds all chunks of the newest version, one behind the other.

    The fields are those of torch's CUDA IPC handle, bytes in base64.
    """

    device: _Name
    """UUID of the GPU."""
    handle: _Name
    storage_bytes: _Size
    storage_offset_bytes: _Size
    ref_counter: _Name
    ref_counter_offset: _Size
    event: str
    event_sync: bool


class NcclOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="transport", tag="nccl"):
    """Where the learner waits for servers that want the newest version broadcast."""

    device: _Name
    """UUID of the learner's GPU; `cpu` where gloo stands in for NCCL."""
    address: _Name
    port: _Port


Offer = IpcOffer | NcclOffer


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rollout server's word to the learner: broadcast `version` to a group made for this one try."""

    attempt: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]
    version: int
    num_workers: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    """vLLM's workers of that server; they have the ranks from 1 on."""


def parse_offer(values: Any) -> Offer:
    """The checked offer. Raises `MalformedMessageError` naming the field."""
    try:
        offer: Offer = msgspec.convert(values, Offer)
    except msgspec.ValidationError as error:
        raise MalformedMessageError(f"The offer of weights is not valid: {error}.") from error
    if isinstance(offer, IpcOffer):
        for field in ("handle", "ref_counter", "event"):
            data = to_bytes(getattr(offer, field), field)
            if len(data) > 4096 or (field == "ref_counter" and not _REF_COUNTER.fullmatch(data)):
                raise MalformedMessageError(f"The offer of weights is not valid: {field} is no handle of torch's.")
    return offer


def parse_layout(data: bytes) -> Layout:
    """The checked layout. Raises `MalformedMessageError`."""
    try:
        layout = msgspec.json.decode(data, type=Layout)
    except msgspec.DecodeError as error:
        raise MalformedMessageError(f"{LAYOUT_FILE} is not valid: {error}.") from error
    layout.check()
    return layout


def to_text(data: bytes) -> str:
    """Bytes as they travel in JSON."""
    return base64.b64encode(data).decode()


def to_bytes(text: str, field: str) -> bytes:
    """Back from `to_text`. Raises `MalformedMessageError`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedMessageError(f"The offer of weights is not valid: {field} is not base64.") from error


class Transfer(msgspec.Struct, frozen=True):
    """What `update_info` says of a fast transport: one try to take the newest version from the learner itself."""

    attempt: str
    """32 hex digits, new for each try."""
    offer: Offer


def parse_transfer(values: Any) -> Transfer:
    """The checked field `transfer` of an `update_info`. Raises `MalformedMessageError`."""
    if not isinstance(values, dict) or set(values) != {"attempt", "offer"}:
        raise MalformedMessageError("transfer must be an object with attempt and offer.")
    if not isinstance(values["attempt"], str) or not re.fullmatch("[0-9a-f]{32}", values["attempt"]):
        raise MalformedMessageError("transfer.attempt must be 32 hex digits.")
    return Transfer(values["attempt"], parse_offer(values["offer"]))

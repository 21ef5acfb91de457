"""The wire format: two magic bytes, one version byte, one type byte, then msgpack.

A reader knows from the first four bytes whether it can read the rest, before it parses anything that another party
wrote. Version and type codes are part of the contract: golden files in `tests/unit/contracts` pin them.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from services.contracts import arrays, events, messages
from services.contracts.errors import MalformedMessageError

MAGIC = b"TN"
VERSION = 2
MAX_MESSAGE_BYTES = 256 * 1024 * 1024

_CODES: dict[type[msgspec.Struct], int] = {
    messages.PromptTask: 1,
    messages.CompletedGroup: 2,
    messages.ScoredGroup: 3,
    messages.DeadLetter: 4,
    events.RunStateChanged: 16,
    events.StepFinished: 17,
    events.EvaluationFinished: 18,
    events.CheckpointWritten: 19,
    events.WeightsPublished: 20,
    events.Note: 21,
    events.SamplesTaken: 22,
    events.ProbeFinished: 23,
}
_TYPES = {code: kind for kind, code in _CODES.items()}
_ENCODER = msgspec.msgpack.Encoder(enc_hook=arrays.packed)
_DECODERS = {code: msgspec.msgpack.Decoder(kind, dec_hook=arrays.unpacked) for code, kind in _TYPES.items()}

M = TypeVar("M", bound=msgspec.Struct)


class _Names(msgspec.Struct):
    """What of a task, completed or scored group says which group it is. The rest is passed over unread: with long
    responses and thousands of groups it is gigabytes."""

    group_id: str = ""
    task: _Names | None = None
    group: _Names | None = None


_NAMES = msgspec.msgpack.Decoder(_Names)


def encode(message: msgspec.Struct) -> bytes:
    """Bytes of one message. Raises `KeyError` for a type that is not part of the wire format, which is a bug."""
    return MAGIC + bytes((VERSION, _CODES[type(message)])) + _ENCODER.encode(message)


def decode(payload: bytes, kind: type[M]) -> M:
    """The message in `payload`, checked to be a consistent `kind`.

    Raises:
        MalformedMessageError: other magic, version or type; bytes that do not parse; a failed `check`.
    """
    message = decode_any(payload)
    if not isinstance(message, kind):
        raise MalformedMessageError(f"expected {kind.__name__}, got {type(message).__name__}.")
    return message


def decode_any(payload: bytes) -> msgspec.Struct:
    """The message in `payload`, whatever its type. Raises `MalformedMessageError` as `decode` does."""
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MalformedMessageError(f"message of {len(payload)} bytes is over the limit of {MAX_MESSAGE_BYTES}.")
    if len(payload) < 4 or payload[:2] != MAGIC:
        raise MalformedMessageError("message does not start with our magic bytes.")
    version, code = payload[2], payload[3]
    if version != VERSION:
        raise MalformedMessageError(f"message has wire version {version}; this service reads {VERSION}.")
    decoder = _DECODERS.get(code)
    if decoder is None:
        raise MalformedMessageError(f"message has unknown type code {code}.")
    try:
        message: msgspec.Struct = decoder.decode(payload[4:])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: text that is not UTF-8
        raise MalformedMessageError(f"message of type {_TYPES[code].__name__} does not parse: {error}") from error
    check = getattr(message, "check", None)
    if check is not None:
        check()
    return message


def group_of(payload: bytes) -> str | None:
    """Id of the group in a task, completed or scored group; None for other bytes."""
    if len(payload) < 4 or payload[:2] != MAGIC or payload[2] != VERSION:
        return None
    try:
        message = _NAMES.decode(payload[4:])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    while (inner := message.group or message.task) is not None:
        message = inner
    return message.group_id or None

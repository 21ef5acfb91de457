"""Arrays of numbers in messages: packed, little-endian, four bytes per number.

A group of eight responses of 8,192 tokens has 131,072 numbers. As lists they would be as many Python objects in every
service that only passes them on; packed they are two blocks of bytes a rollout, and half as many on the wire.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Any, ClassVar, Self

NUM_BYTES = 4

assert sys.byteorder == "little", "the wire format is that of little-endian machines"


class _Packed(array):  # type: ignore[type-arg]  # array is generic for checkers only
    """Reads like a list; `tolist()` returns one."""

    code: ClassVar[str]

    def __new__(cls, values: Iterable[float] | bytes = ()) -> Self:
        """From numbers or packed bytes. Raises `OverflowError` or `ValueError` for values that do not fit."""
        return super().__new__(cls, cls.code, values)

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return type(self), (self.tobytes(),)


class TokenIds(_Packed):
    """Token ids, unsigned 32-bit integers."""

    code = "I"


class LogProbs(_Packed):
    """Natural-log probabilities, float32: what sampling engines compute in. Other numbers are rounded."""

    code = "f"


assert TokenIds().itemsize == LogProbs().itemsize == NUM_BYTES


def packed(value: Any) -> memoryview:
    """An array's bytes, for the encoder. Raises `NotImplementedError` for types that messages cannot contain."""
    if isinstance(value, _Packed):
        return memoryview(value).cast("B")
    raise NotImplementedError(f"{type(value).__name__} has no place in a message")


def unpacked(kind: type, value: Any) -> Any:
    """The array of `kind` in packed bytes, for the decoder. Raises `ValueError` for other values or a broken length."""
    if not isinstance(value, bytes) or not issubclass(kind, _Packed):
        raise ValueError(f"expected packed {kind.__name__}, got {type(value).__name__}")
    return kind(value)

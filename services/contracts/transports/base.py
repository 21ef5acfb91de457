"""What a weight transport is to both sides: its offer.

An offer says how servers get at the newest version. It is the field `transfer` of the `weights` hash, as JSON; the API
passes it on in `update_info`. It contains plain numbers and text, which are checked once, on arrival.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, ClassVar

import msgspec

from services.contracts.errors import MalformedMessageError

Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="transport"):
    """Base of all offers. The tag of each is its transport's name."""

    brings_folder: ClassVar[bool] = False
    """The transport replaces the shared folder: it brings all files of a version, and servers that join late use it."""

    @property
    def transport(self) -> str:
        """Name in `weights.transport`."""
        return str(self.__struct_config__.tag)

    @property
    def meeting_point(self) -> tuple[str, int] | None:
        """Address and port at which the learner must answer; None if nothing listens."""
        return None

    def check(self) -> None:
        """Check what the fields' types cannot express. Raises `MalformedMessageError`."""


def to_text(data: bytes) -> str:
    """Bytes as they travel in JSON."""
    return base64.b64encode(data).decode()


def to_bytes(text: str, field: str) -> bytes:
    """Back from `to_text`. Raises `MalformedMessageError`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedMessageError(f"The offer of weights is not valid: {field} is not base64.") from error

"""The weight transports that a run can name.

A new one is an entry here and three files of its name: the offer in this folder, a sender in
`services.learner.publish`, a receiver in `services.rollout.weights.receive`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, Final, Union

import msgspec

from services.contracts.errors import MalformedMessageError
from services.contracts.transports.base import Offer
from services.contracts.transports.cuda_ipc import IpcOffer
from services.contracts.transports.http import HttpOffer
from services.contracts.transports.nccl import NcclOffer

TRANSPORTS: Final[Mapping[str, type[Offer] | None]] = {
    "store": None,
    "http": HttpOffer,
    "cuda_ipc": IpcOffer,
    "nccl": NcclOffer,
}
"""Offers by name. None: nothing to offer, the version's folder is all that a server needs."""
_ANY_OFFER: Final[Any] = Union[tuple(kind for kind in TRANSPORTS.values() if kind is not None)]  # noqa: UP007


def parse_offer(values: Any) -> Offer:
    """The checked offer. Raises `MalformedMessageError` naming the field."""
    try:
        offer: Offer = msgspec.convert(values, _ANY_OFFER)
    except msgspec.ValidationError as error:
        raise MalformedMessageError(f"The offer of weights is not valid: {error}.") from error
    offer.check()
    return offer


def brings_folder(transport: str) -> bool:
    """Whether servers get all files of a version by this transport, without a shared folder."""
    kind = TRANSPORTS.get(transport)
    return kind is not None and kind.brings_folder


class Transfer(msgspec.Struct, frozen=True):
    """What `update_info` says of a fast transport: one try to take the newest version from the learner itself."""

    attempt: str
    """32 hex digits, new for each try."""
    offer: Offer


def transfer_for_joining(offer: bytes) -> dict[str, Any] | None:
    """What a server that brings itself up to date puts into `update_info`, from the learner's offer as JSON (empty for
    none): only a transport that brings a version's files works then. Raises `MalformedMessageError`."""
    if not offer:
        return None
    try:
        values = msgspec.json.decode(offer)
    except msgspec.DecodeError as error:
        raise MalformedMessageError(f"The offer of weights is not JSON: {error}.") from error
    return {"attempt": uuid.uuid4().hex, "offer": values} if parse_offer(values).brings_folder else None


def parse_transfer(values: Any) -> Transfer:
    """The checked field `transfer` of an `update_info`. Raises `MalformedMessageError`."""
    if not isinstance(values, dict) or set(values) != {"attempt", "offer"}:
        raise MalformedMessageError("transfer must be an object with attempt and offer.")
    if not isinstance(values["attempt"], str) or not re.fullmatch("[0-9a-f]{32}", values["attempt"]):
        raise MalformedMessageError("transfer.attempt must be 32 hex digits.")
    return Transfer(values["attempt"], parse_offer(values["offer"]))

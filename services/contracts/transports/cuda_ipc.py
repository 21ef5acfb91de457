"""Transport `cuda_ipc`: servers on the learner's machine copy from its GPU memory."""

from __future__ import annotations

import re

from services.contracts.errors import MalformedMessageError
from services.contracts.transports.base import Name, Offer, Size, to_bytes

_REF_COUNTER = re.compile(rb"/[A-Za-z0-9_]{1,200}")


class IpcOffer(Offer, frozen=True, tag="cuda_ipc"):
    """A buffer in the learner's GPU memory that holds all chunks of the newest version, one after the other.

    The fields are those of torch's CUDA IPC handle, bytes in base64.
    """

    device: Name
    """UUID of the GPU."""
    handle: Name
    storage_bytes: Size
    storage_offset_bytes: Size
    ref_counter: Name
    ref_counter_offset: Size
    event: str
    event_sync: bool

    def check(self) -> None:
        for field in ("handle", "ref_counter", "event"):
            data = to_bytes(getattr(self, field), field)
            if len(data) > 4096 or (field == "ref_counter" and not _REF_COUNTER.fullmatch(data)):
                raise MalformedMessageError(f"The offer of weights is not valid: {field} is not a torch handle.")

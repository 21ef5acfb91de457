"""Transport `nccl`: the learner broadcasts over the network to GPUs other than its own."""

from __future__ import annotations

from typing import Annotated

import msgspec

from services.contracts.transports.base import Name, Offer


class NcclOffer(Offer, frozen=True, tag="nccl"):
    """Where the learner waits for servers that want the newest version broadcast."""

    device: Name
    """UUID of the learner's GPU; `cpu` if gloo is used instead of NCCL."""
    address: Name
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]

    @property
    def meeting_point(self) -> tuple[str, int]:
        return self.address, self.port


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rollout server's request to the learner: broadcast `version` to a process group made for this attempt."""

    attempt: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]
    version: int
    num_workers: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    """vLLM's workers of that server; they have the ranks from 1 on."""

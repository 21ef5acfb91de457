"""Transport `nccl`, the rollout server's side: a rank in a process group that is made for this one update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from services.contracts.transports.layout import Layout
from services.contracts.transports.nccl import Ask, NcclOffer
from services.rollout.weights.receive.base import TransferError
from services.rollout.weights.receive.chunks import ChunkReceiver
from services.runtime.torch.process_group import device_name, make_group

WAIT = timedelta(seconds=10)
"""Timeout of each wait: for the answer, joining, one broadcast."""


class NcclReceiver(ChunkReceiver):
    """The first worker asks, and all workers join. On a CPU device gloo replaces NCCL, for tests."""

    def environment(self) -> AbstractContextManager[Any]:
        """Covers the whole transfer, since the first broadcast creates the communicator."""
        return self.worker.nccl_environment()

    def chunks(self, offer: NcclOffer, attempt: str, version: int, layout: Layout) -> Iterator[Tensor]:
        from torch.distributed.distributed_c10d import BroadcastOptions

        worker = self.worker
        check_devices(offer.device, device_name(torch, worker.device))
        ask = Ask(attempt, version, worker.num_workers)
        store = TCPStore(offer.address, offer.port, is_master=False, timeout=WAIT)
        if worker.number == 0:
            store.set(f"ask/{store.add('asks', 1)}", msgspec.json.encode(ask).decode())
        answer = store.get(f"answer/{attempt}").decode()
        if answer != "go":
            raise TransferError(f"The learner refused the transfer: {answer}.")
        rank = 1 + worker.number
        group = make_group(torch, PrefixStore(attempt, store), rank, 1 + ask.num_workers, worker.device, WAIT)
        options = BroadcastOptions()
        options.rootRank = 0
        try:
            for chunk in layout.chunks:
                buffer = torch.empty(chunk.bytes, dtype=torch.uint8, device=worker.device)
                group.broadcast([buffer], options).wait(WAIT)
                yield buffer
            store.set(f"done/{attempt}/{rank}", "1")
        finally:
            group.abort()


def check_devices(theirs: str, ours: str) -> None:
    """Raise `TransferError` if NCCL cannot work between the two devices."""
    if (theirs == "cpu") != (ours == "cpu"):
        raise TransferError(
            "weights.transport nccl needs a CUDA device on the server and the learner. Set weights.transport to store."
        )
    if theirs == ours != "cpu":
        raise TransferError(
            "weights.transport nccl needs a GPU other than the learner's. Set weights.transport to cuda_ipc, or use "
            "another GPU."
        )


RECEIVER = NcclReceiver

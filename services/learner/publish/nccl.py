"""Transport `nccl`, the learner's side: rank 0 of a process group made for one update of one rollout server.

The two sides meet at a torch TCP store, which carries plain bytes. A server's first worker puts an `Ask` there, the
answer is `go` or the reason why not, and both sides create a process group with the learner as rank 0 and the workers
from rank 1. Each chunk is one broadcast. Each update pays for setting up its group, but no group outlives a failure,
and servers do not depend on each other. Each ask has its own thread, so a dead peer blocks only that thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Self
from urllib.parse import urlsplit

import msgspec
import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from services.contracts.transports.layout import Chunk, Layout
from services.contracts.transports.nccl import Ask, NcclOffer
from services.learner.publish.base import Sender, require_cuda
from services.learner.publish.chunks import fill, plan, with_digest
from services.runtime.address import url_of
from services.runtime.logs import get_logger
from services.runtime.settings import Settings
from services.runtime.torch.process_group import device_name, make_group
from services.runtime.torch.side_streams import SideStreams

log = get_logger(__name__)
LIMIT = timedelta(seconds=10)
"""Timeout of each wait: joining, one broadcast, the workers' final confirmation."""
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Held:
    """The version that is being offered."""

    version: int
    layout: Layout
    weights: Mapping[str, Tensor]


class NcclSender(Sender):
    """Broadcasts the newest version to servers that ask for it."""

    def __init__(self, address: str, device: torch.device) -> None:
        """`address` is where servers reach this machine. On a CPU device gloo replaces NCCL, for tests."""
        self._device = device
        self._streams = SideStreams(torch, device)
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
        self._offer = NcclOffer(device_name(torch, device), address, self._store.port)
        self._held: Held | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._listen, name="transfer", daemon=True).start()

    @classmethod
    def make(cls, device: torch.device, settings: Settings) -> Self:
        require_cuda(device)
        return cls(urlsplit(settings.advertise_url or url_of(settings.host, 0)).hostname or settings.host, device)

    def load(self, version: int, weights: Mapping[str, Tensor]) -> Layout:
        chunks, done = plan(weights), []
        with self._streams.one():
            buffer = self._buffer_for(chunks)
            for chunk in chunks:
                part = buffer[: chunk.bytes]
                fill(part, chunk, weights)
                done.append(with_digest(chunk, part))
        self._held = Held(version, Layout(done), weights)
        return self._held.layout

    def _buffer_for(self, chunks: list[Chunk]) -> Tensor:
        """A buffer of the largest chunk's size, reused for each chunk."""
        return torch.empty(max((chunk.bytes for chunk in chunks), default=0), dtype=torch.uint8, device=self._device)

    def offer(self) -> NcclOffer:
        return self._offer

    def close(self) -> None:
        self._closed.set()

    def _listen(self) -> None:
        """Consumes asks; starts a thread for each. Runs until `close`."""
        number = 1
        while not self._closed.wait(POLL_SECONDS):
            if self._store.check([f"ask/{number}"]):
                asked = self._store.get(f"ask/{number}")
                number += 1
                threading.Thread(target=self._serve, args=(asked,), name="transfer-send", daemon=True).start()

    def _serve(self, asked: bytes) -> None:
        try:
            ask = msgspec.json.decode(asked, type=Ask)
            store = TCPStore("127.0.0.1", self._offer.port, is_master=False, timeout=LIMIT)
            held = self._held
            if held is None or held.version != ask.version:
                offered = "no version" if held is None else f"version {held.version}"
                store.set(f"answer/{ask.attempt}", f"the learner offers {offered}, not version {ask.version}")
                return
            store.set(f"answer/{ask.attempt}", "go")
            self._send(store, ask, held)
        except (RuntimeError, msgspec.DecodeError) as error:
            log.warning("weights not sent, server uses the store", error=str(error).split("\n")[0])

    def _send(self, store: TCPStore, ask: Ask, held: Held) -> None:
        from torch.distributed.distributed_c10d import BroadcastOptions

        group = make_group(torch, PrefixStore(ask.attempt, store), 0, 1 + ask.num_workers, self._device, LIMIT)
        options = BroadcastOptions()
        options.rootRank = 0
        try:
            with self._streams.one():
                buffer = self._buffer_for(held.layout.chunks)
                for chunk in held.layout.chunks:
                    part = buffer[: chunk.bytes]
                    fill(part, chunk, held.weights)
                    group.broadcast([part], options).wait(LIMIT)  # finished, so the buffer can be reused
            # The group must exist until the last byte has left this machine.
            store.wait([f"done/{ask.attempt}/{rank}" for rank in range(1, 1 + ask.num_workers)], LIMIT)
        finally:
            group.abort()


SENDER = NcclSender

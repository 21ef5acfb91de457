"""CUDA streams other than the default one, for weight transfers that share a GPU with training or with vLLM.

Callers pass in torch, so that this module does not import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SideStreams:
    """A pool of streams. torch's allocator keeps freed memory for the stream that it was allocated on, so a new stream
    for each use would strand a buffer each time. Thread-safe."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch = torch
        self._device = device
        self._idle: list[Any] = []

    @contextmanager
    def one(self) -> Iterator[None]:
        """A stream that no other thread uses, current in this thread. Its work is finished when the context exits. Does
        nothing on the CPU. After an error the stream is not reused, since something may hang on it."""
        if self._device.type != "cuda":
            yield
            return
        try:
            stream = self._idle.pop()
        except IndexError:
            stream = self._torch.cuda.Stream(self._device)
        with self._torch.cuda.stream(stream):
            yield
        stream.synchronize()
        self._idle.append(stream)

"""CUDA streams other than the default one, for weight transfers that share a GPU with training or with vLLM.

Services hand in their own torch: nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SideStreams:
    """Streams that are kept and used again. torch's allocator keeps freed memory for the stream that it was allocated
    on: with a new stream for each use, each would strand a buffer. May be used from several threads."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch = torch
        self._device = device
        self._idle: list[Any] = []

    @contextmanager
    def one(self) -> Iterator[None]:
        """A stream that no other thread has, current in this thread; its work has ended when the block does. On the CPU
        nothing happens. After an error the stream is not used again: something may hang on it."""
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

"""Streams for weight transfers are few, and none that something may hang on is used again. A stand-in for CUDA."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from services.runtime.torch.side_streams import SideStreams

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stream:
    def __init__(self, made: list[Stream]) -> None:
        self.synchronized = 0
        made.append(self)

    def synchronize(self) -> None:
        self.synchronized += 1


class Cuda:
    """Which streams were made, and which one is current."""

    def __init__(self) -> None:
        self.made: list[Stream] = []
        self.current: list[Stream] = []

    def Stream(self, device: object) -> Stream:
        return Stream(self.made)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.current.append(stream)
        try:
            yield
        finally:
            self.current.pop()


def test_a_stream_is_used_again_unless_it_is_in_use_or_has_failed() -> None:
    cuda: Any = Cuda()
    streams = SideStreams(SimpleNamespace(cuda=cuda), SimpleNamespace(type="cuda"))
    for _ in range(3):
        with streams.one():
            assert cuda.current == cuda.made
    assert [stream.synchronized for stream in cuda.made] == [3]
    with streams.one(), streams.one():
        assert cuda.current == cuda.made
        assert len(cuda.made) == 2
    with pytest.raises(RuntimeError), streams.one():
        raise RuntimeError("a broadcast hangs")
    with streams.one():
        failed = len(cuda.made)
    with streams.one(), streams.one():
        pass
    assert len(cuda.made) == failed + 1
    assert cuda.current == []


def test_the_cpu_has_none() -> None:
    with SideStreams(SimpleNamespace(), SimpleNamespace(type="cpu")).one():
        pass

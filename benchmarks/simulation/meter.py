"""What the ring costs: CPU seconds of encoding and decoding by message, of the server by command, and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import redis as redis_sync

from services.contracts import codec

M = TypeVar("M", bound=msgspec.Struct)


class Meter:
    """Measures while `measuring` is open. The server's figures are differences over that time."""

    def __init__(self, url: str) -> None:
        self._client = redis_sync.Redis.from_url(url)
        self.calls: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        """CPU seconds by `encode Kind` and `decode Kind`."""
        self.largest_bytes = 0
        """Largest memory of the server's data seen."""
        self.server_seconds = 0.0
        self.process_seconds = 0.0
        self.real_seconds = 0.0
        self.commands: dict[str, tuple[int, float]] = {}
        """Calls and CPU seconds by command of the server."""

    @contextmanager
    def measuring(self) -> Iterator[None]:
        encode, decode = codec.encode, codec.decode

        def timed_encode(message: msgspec.Struct) -> bytes:
            started = time.thread_time()
            payload = encode(message)
            self._add(f"encode {type(message).__name__}", time.thread_time() - started)
            return payload

        def timed_decode(payload: bytes, kind: type[M]) -> M:
            started = time.thread_time()
            message = decode(payload, kind)
            self._add(f"decode {kind.__name__}", time.thread_time() - started)
            return message

        self._client.config_resetstat()
        server, process, real = self._server_cpu(), time.process_time(), time.monotonic()
        self._base = int(self._info("memory")["used_memory_dataset"])
        codec.encode, codec.decode = timed_encode, timed_decode  # type: ignore[assignment]
        try:
            yield
        finally:
            codec.encode, codec.decode = encode, decode
            self.server_seconds = self._server_cpu() - server
            self.process_seconds = time.process_time() - process
            self.real_seconds = time.monotonic() - real
            stats: dict[str, Any] = self._info("commandstats")
            self.commands = {
                name.removeprefix("cmdstat_"): (entry["calls"], entry["usec"] / 1e6) for name, entry in stats.items()
            }
            self._client.close()

    def look(self) -> None:
        """Note the server's memory now."""
        self.largest_bytes = max(self.largest_bytes, int(self._info("memory")["used_memory_dataset"]) - self._base)

    def _add(self, name: str, seconds: float) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def _info(self, section: str) -> dict[str, Any]:
        found: Any = self._client.info(section)
        return dict(found)

    def _server_cpu(self) -> float:
        """CPU seconds of the server's process; the command thread and the file's thread both count."""
        info = self._info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

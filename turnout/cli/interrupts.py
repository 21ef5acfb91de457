"""Turns Ctrl-C and SIGTERM into a flag that loops check, so that every stop is orderly.

The first signal requests a graceful stop; a second one requests a stop without waiting.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Context manager that counts stop signals; restores the previous handlers on exit."""

    def __init__(self) -> None:
        self.count = 0
        self._event = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._event.set()

    @property
    def requested(self) -> bool:
        """A stop was requested."""
        return self.count > 0

    @property
    def urgent(self) -> bool:
        """A stop was requested twice."""
        return self.count > 1

    def sleep(self, seconds: float) -> None:
        """Sleep, but wake at a signal. After the first signal it sleeps the whole time, and a second one is seen
        afterwards."""
        if self._event.wait(seconds):
            self._event.clear()

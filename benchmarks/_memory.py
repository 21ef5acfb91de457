"""How much memory a deployment uses: the largest sum over its processes, pages that they share counted once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from turnout.cli.local.processes import read_state

INTERVAL_SECONDS = 2.0
"""The kernel needs some milliseconds a process to add up its pages."""


class Peak:
    """The most of what was seen, in bytes."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def peak_memory(home: Path) -> Iterator[Peak]:
    """Look at a home's processes every few seconds until the context ends."""
    state = read_state(home)
    assert state is not None
    supervisor, peak, ended = psutil.Process(state.supervisor.pid), Peak(), threading.Event()

    def look() -> None:
        while not ended.wait(INTERVAL_SECONDS):
            peak.bytes = max(peak.bytes, proportional_bytes(supervisor))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def proportional_bytes(parent: psutil.Process) -> int:
    """Memory (PSS) of a process and all its descendants."""
    total = 0
    for process in [parent, *parent.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended meanwhile, or in a sandbox
            continue
    return total

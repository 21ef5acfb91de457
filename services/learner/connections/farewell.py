"""Ends the training program, but not in the middle of a checkpoint.

SIGTERM, the service's death or a fault in the training thread would otherwise discard a write that may have taken
minutes. A successor waits, because the program holds the run's lock until it exits.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from services.learner.connections.progress_pipe import EXIT_TERMINATED
from services.runtime.logs import get_logger

log = get_logger(__name__)
WRITE_SECONDS = 25.0
"""Longest wait for a checkpoint. Must be shorter than a successor waits for the lock (`program.main.LOCK_SECONDS`)."""
_writing = threading.Lock()


@contextmanager
def writing() -> Iterator[None]:
    """Hold this while a checkpoint is written and its groups are acknowledged."""
    with _writing:
        yield


def end_when_written(code: int) -> NoReturn:
    """Exit this process, from any thread, once no checkpoint is being written."""
    if not _writing.acquire(timeout=WRITE_SECONDS):
        log.warning("unfinished checkpoint abandoned", seconds=WRITE_SECONDS)
    os._exit(code)


def end_on_sigterm() -> None:
    """Make SIGTERM call `end_when_written`. Call this from the main thread, which may be deep in native code when the
    signal arrives; a separate thread therefore waits for it."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def wait() -> None:
        while signal.SIGTERM not in os.read(read_end, 1):
            pass
        end_when_written(EXIT_TERMINATED)

    threading.Thread(target=wait, name="sigterm", daemon=True).start()

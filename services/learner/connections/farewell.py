"""How the training program ends: not before a checkpoint that is being written is whole.

Whatever ends it (SIGTERM, the service's death, a fault of the training thread) would else throw away a write that
may have taken minutes. A successor waits for it: the program holds the run's lock as long as it lives.
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
"""Longest wait for a checkpoint, less than a successor waits (`train.LOCK_SECONDS`)."""
_writing = threading.Lock()


@contextmanager
def writing() -> Iterator[None]:
    """For as long as a checkpoint is written and its groups are acknowledged."""
    with _writing:
        yield


def end_when_written(code: int) -> NoReturn:
    """End this process, from any thread, once no checkpoint is being written."""
    if not _writing.acquire(timeout=WRITE_SECONDS):
        log.warning("a checkpoint that is being written is given up", seconds=WRITE_SECONDS)
    os._exit(code)


def end_on_sigterm() -> None:
    """Let SIGTERM end this process by `end_when_written`. Call it from the main thread. That may be deep in native code
    when the signal comes, so a thread of its own waits for it."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def wait() -> None:
        while signal.SIGTERM not in os.read(read_end, 1):
            pass
        end_when_written(EXIT_TERMINATED)

    threading.Thread(target=wait, name="sigterm", daemon=True).start()

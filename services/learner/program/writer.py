"""The writer thread: publishes weights, reports steps and writes checkpoints, in order, while training continues."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Runs jobs one after another in a thread. A job's exception is raised by the next call, in the training thread."""

    def __init__(self, max_pending: int = 1) -> None:
        """`max_pending` jobs may wait behind the running one; each holds a copy of the weights."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: list[Future[None]] = []
        self._max_pending = max_pending

    def wait_for_room(self) -> None:
        """Wait until another job may be submitted."""
        self.check()
        while len(self._pending) > self._max_pending:
            self._pending.pop(0).result()

    def submit(self, job: Callable[[], None]) -> None:
        """Add a job, waiting for room first."""
        self.wait_for_room()
        self._pending.append(self._pool.submit(job))

    def check(self) -> None:
        """Raise the exception of a finished job, if one failed."""
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()

    def drain(self) -> None:
        """Wait until all jobs are done."""
        while self._pending:
            self._pending.pop(0).result()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

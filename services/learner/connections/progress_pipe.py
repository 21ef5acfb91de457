"""The training program's reports to the learner service: one JSON line per second through a pipe.

An orphaned program also notices through the pipe that the service died: writing fails and the program exits, so that a
run never has two learners. Ranks without a pipe watch their parent process instead.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import msgspec

PIPE_VARIABLE = "TURNOUT_PROGRESS_FD"
RUN_VARIABLE = "TURNOUT_RUN_ID"
MEETING_VARIABLE = "TURNOUT_MEETING"
"""File through which the ranks find each other, in a folder that only this user can enter."""
ATTEMPT_VARIABLE = "TURNOUT_ATTEMPT"
"""Set if ranks are on several machines: they meet in torch's store at MASTER_ADDR and MASTER_PORT, under this name,
which keeps those of an earlier attempt apart."""
LISTENER_VARIABLE = "TURNOUT_MEETING_FD"
"""The open socket on which rank 0 serves that store: on one address only."""
SERVICE_VARIABLE = "TURNOUT_SERVICE_PID"
EXIT_REPORTED = 3
"""Exit code: the run ended or failed and its state has been reported; a restart would not help."""
EXIT_ORPHANED = 4
EXIT_REFUSED = 6
"""Exit code of a helper's first rank: the run cannot work, and only the pipe has the reason."""
EXIT_TERMINATED = 128 + signal.SIGTERM
"""Exit code: ended by SIGTERM, encoded as a shell does."""
EXIT_NO_QUEUE = 5
"""Exit code: the queue server was unavailable for too long. Restart the program once the server is back."""


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line on the pipe."""

    state: str = "starting"
    """A `ServiceState`."""
    weight_version: int | None = None
    waiting_for: str = ""
    tokens_total: int = 0
    step: int = 0
    error: str = ""
    """Why the program is about to exit."""


class ProgressPipe:
    """The program's end of the pipe. Without a pipe, if the program was started by hand, writing does nothing."""

    def __init__(self) -> None:
        value = os.environ.get(PIPE_VARIABLE)
        self._descriptor = None if value is None else int(value)

    @property
    def is_connected(self) -> bool:
        return self._descriptor is not None

    def write(self, progress: Progress) -> None:
        """Send one line. Raises `BrokenPipeError` if the service is gone."""
        if self._descriptor is not None:
            os.write(self._descriptor, msgspec.json.encode(progress) + b"\n")


def end_with_service() -> None:
    """Start a thread that exits this process within a second of the service's death. Does nothing without a service.

    A rank waiting in a collective would otherwise hold its GPU until the collective times out.
    """
    if SERVICE_VARIABLE not in os.environ:
        return
    service = int(os.environ[SERVICE_VARIABLE])

    def watch() -> None:
        while os.getppid() == service:
            time.sleep(0.5)
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=watch, name="orphan", daemon=True).start()

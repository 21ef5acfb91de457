"""What the training program tells the learner service: one JSON line a second through a pipe.

The pipe is also how an orphan learns that the service died: writing fails, and the program ends itself, so that
there are never two learners for one run. Ranks without a pipe look after their parent.
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
"""File, in a folder that only this user may enter, by which the ranks find each other."""
SERVICE_VARIABLE = "TURNOUT_SERVICE_PID"
EXIT_REPORTED = 3
"""Exit code: the run ended or failed, and its state has been reported; starting again would not help."""
EXIT_ORPHANED = 4
EXIT_TERMINATED = 128 + signal.SIGTERM
"""Exit code: SIGTERM came, as a shell would say it."""
EXIT_NO_QUEUE = 5
"""Exit code: the queue server did not serve for long. Not the program's fault: start it again once it does."""


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line."""

    state: str = "starting"
    """A `ServiceState`."""
    weight_version: int | None = None
    waiting_for: str = ""
    tokens_total: int = 0
    step: int = 0
    error: str = ""
    """Why the program is about to end."""


class ProgressPipe:
    """The program's end of the pipe; silent where the program was started by hand."""

    def __init__(self) -> None:
        value = os.environ.get(PIPE_VARIABLE)
        self._descriptor = None if value is None else int(value)

    def write(self, progress: Progress) -> None:
        """Raise `BrokenPipeError` if the service is gone."""
        if self._descriptor is not None:
            os.write(self._descriptor, msgspec.json.encode(progress) + b"\n")


def end_with_service() -> None:
    """End this process, from a thread, within a second of the service's death; nothing where it has none.

    A rank that waits in a collective would else hold its GPU until the collective's time is up.
    """
    if SERVICE_VARIABLE not in os.environ:
        return
    service = int(os.environ[SERVICE_VARIABLE])

    def watch() -> None:
        while os.getppid() == service:
            time.sleep(0.5)
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=watch, name="orphan", daemon=True).start()

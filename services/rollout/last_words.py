"""Finds out why an engine process did not start.

vLLM logs the reason in the process that failed and tells its parent only "see above", which does not help a user who
looks at a run. The failing process therefore also writes the reason to a file that its parent names.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VARIABLE = "TURNOUT_ENGINE_LAST_WORDS"
"""Environment variable with the file's path, for the engine's processes, forked or spawned."""


@contextmanager
def expected() -> Iterator[Callable[[], str]]:
    """Use this while an engine starts. Yields a function that reads the reason, empty if none was written."""
    with tempfile.TemporaryDirectory(prefix="turnout-engine-") as folder:
        file = Path(folder) / "reason"
        os.environ[VARIABLE] = str(file)
        try:
            yield lambda: file.read_text().strip() if file.exists() else ""
        finally:
            del os.environ[VARIABLE]


class Recorder(logging.Handler):
    """Writes the error of the first log record with an exception to the file; later failures are consequences."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        path = os.environ.get(VARIABLE)
        if error is not None and path and not os.path.exists(path):
            with suppress(OSError):  # the folder is gone once the engine has started
                Path(path).write_text(f"{type(error).__name__}: {error}")


def record() -> None:
    """In every engine process, write the reason to the file if the process fails while starting."""
    logger = logging.getLogger("vllm")
    if not any(isinstance(handler, Recorder) for handler in logger.handlers):
        logger.addHandler(Recorder(logging.ERROR))

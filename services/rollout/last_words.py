"""Why an engine process did not start.

vLLM logs the reason in the process that failed and tells its parent no more than "see above", which a person who looks
at a run cannot do. Here the failing process also writes the reason to a file that its parent named.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VARIABLE = "TURNOUT_ENGINE_LAST_WORDS"
"""Names the file to the engine's processes, forked or spawned."""


@contextmanager
def expected() -> Iterator[Callable[[], str]]:
    """For as long as an engine starts: yields a function that reads the reason, empty where none was left."""
    with tempfile.TemporaryDirectory(prefix="turnout-engine-") as folder:
        file = Path(folder) / "reason"
        os.environ[VARIABLE] = str(file)
        try:
            yield lambda: file.read_text().strip() if file.exists() else ""
        finally:
            del os.environ[VARIABLE]


class Recorder(logging.Handler):
    """Writes the error of the first failing log record to the file; what fails later is its consequence."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        path = os.environ.get(VARIABLE)
        if error is not None and path and not os.path.exists(path):
            with suppress(OSError):  # the engine has long started: the reason is not expected, and the folder is gone
                Path(path).write_text(f"{type(error).__name__}: {error}")


def record() -> None:
    """In every process of an engine: leave the reason should it fail while it is expected."""
    logger = logging.getLogger("vllm")
    if not any(isinstance(handler, Recorder) for handler in logger.handlers):
        logger.addHandler(Recorder(logging.ERROR))

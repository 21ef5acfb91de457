"""Checks of the rows that a run will read, before anything starts.

A row can take long to check (a pattern, for example), so a separate process checks each file, one at a time and with
limits. Rows that it does not reach are checked by the learner when the run starts.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from services.contracts.questions.reading import Checked, skipped_sentence
from services.contracts.questions.source import Source
from services.contracts.run_config import RunConfig
from services.runtime.logs import get_logger

PROGRAM: Final = "services.contracts.questions.check_rows"
SECONDS: Final = 2.5
"""For one file; clients wait 10 s by default."""
ALL_SECONDS: Final = 5.0
"""For all files of a request; those left are checked by the learner."""
GRACE_SECONDS: Final = 1.0
"""For the start of the process, and for the row that is being checked when the time is up."""
WAIT_SECONDS: Final = 2.0
"""For the checks of other requests."""
MOST_KNOWN: Final = 256
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LANG", "LC_ALL")
_Key = tuple[str, int, int, int]

log = get_logger(__name__)


class RowChecks:
    """Checks files, and remembers what it found in those that have not changed since."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._known: dict[_Key, Checked] = {}

    async def check(self, config: RunConfig, prefix: str = "") -> list[str]:
        """Check the rows of a run's files; says which were not all checked, a sentence a file.

        `prefix` is the configuration's place in the request, for `field`.

        Raises:
            ConfigurationError: rows cannot be used; names file, line and field of the first, and counts the others.
        """
        unchecked = []
        deadline = asyncio.get_running_loop().time() + ALL_SECONDS
        for field, source in config.data.files():
            checked = await self._checked(source, deadline - asyncio.get_running_loop().time())
            if error := checked.error(prefix + field):
                raise error
            if not checked.whole:
                unread = f" ({checked.unread})" if checked.unread else ""
                unchecked.append(
                    f"{field}: the first {checked.num_rows} rows of {source.path} were checked when the run was "
                    f"created{unread}; the learner checks all of them when the run starts."
                )
            if checked.num_skipped:
                unchecked.append(skipped_sentence(field, source, checked))
        return unchecked

    async def _checked(self, source: Source, seconds: float) -> Checked:
        """What is known of a file, or is found within `seconds`."""
        key = await asyncio.to_thread(_key, source)
        if key in self._known:
            return self._known[key]
        if seconds <= 0:
            return Checked(whole=False)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            return Checked(whole=False)
        try:
            if key not in self._known:
                checked = await _in_process(source, min(SECONDS, seconds))
                if not checked.num_rows and not checked.whole:
                    return checked
                self._known[key] = checked
                while len(self._known) > MOST_KNOWN:
                    del self._known[next(iter(self._known))]
            return self._known[key]
        finally:
            self._turn.release()


def _key(source: Source) -> _Key:
    text = source.as_json()
    try:
        found = Path(source.path).stat()
    except OSError:  # gone since its place was checked; the check says so
        return text, 0, 0, 0
    return text, found.st_ino, found.st_size, found.st_mtime_ns


async def _in_process(source: Source, seconds: float) -> Checked:
    """What the program says of a file; nothing checked, if it took too long or ended otherwise."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", PROGRAM, source.as_json(), str(seconds)),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds + GRACE_SECONDS):
            output, _ = await process.communicate()
        return msgspec.json.decode(output, type=Checked)
    except (TimeoutError, msgspec.DecodeError) as error:
        log.warning("rows of a file not checked", path=source.path, error=repr(error))
        return Checked(whole=False)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

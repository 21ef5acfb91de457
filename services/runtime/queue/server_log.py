"""Finds out from its log why our own queue server exited.

With `appendfsync always`, Valkey exits if it cannot write its append-only file, since it could not keep what it
acknowledges. Services only see a closed port.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

NAME = "valkey.log"
_READY = "Ready to accept connections"
_FAULT = re.compile(r"((?:Error|Short write while) writing to the AOF file.*|Can't persist AOF for fsync error.*)")
_FULL_BYTES = 16 << 20


def queue_server_fault(home: Path) -> str:
    """A sentence with the remedy if the queue server of `home` exited because it could not write its file.

    Empty if it did not, has started since, or does not belong to this home (a server that TURNOUT_REDIS_URL names).
    """
    try:
        with (home / "logs" / NAME).open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - 8192))
            last_life = log.read().decode(errors="replace").rpartition(_READY)[2]
        free = shutil.disk_usage(home / "queue").free
    except OSError:
        return ""
    found = _FAULT.search(last_life)
    if found is None:
        return ""
    words = found[1].rstrip(". ")
    what = "disk is full" if free < _FULL_BYTES or "No space left" in words else "file cannot be written"
    return (
        f"The queue server's {what}: {home / 'queue'} has {free / 2**20:.0f} MiB free ({words}). "
        "Free some space. The server then restarts automatically with everything that it has acknowledged."
    )

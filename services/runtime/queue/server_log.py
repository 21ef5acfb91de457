"""Why our own queue server ended: it says so in its log, and nowhere else.

With `appendfsync always` Valkey ends at once where it cannot write its append-only file, since it could not keep what
it would have to acknowledge. All that services then see is a closed port.
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
    """One sentence with the remedy where the queue server of `home` ended because it could not write its file.

    Empty where it did not, has come up since, or is not of this home (a server that TURNOUT_REDIS_URL names).
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
        "Free some space; it starts again automatically with all that it has acknowledged."
    )

"""Files that survive a power failure intact, and file locks."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO, Any

_LOOK_SECONDS = 0.1


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file atomically, also with respect to power failures. It is created with `mode`, minus the umask, so that
    no one else can ever read it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def numbers_in(folder: Path, prefix: str) -> list[int]:
    """Numbers of what is named `<prefix><number, eight digits>` in a folder, ascending. Other names, such as those of
    copies that people make, do not count. Empty if there is no folder."""
    found = (path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}[0-9]*"))
    return sorted(int(text) for text in found if text.isdecimal() and text == f"{int(text):08d}")


def lock(file: IO[Any] | int, wait_seconds: float = 0.0) -> bool:
    """Lock an open file or folder. Returns whether that succeeded within `wait_seconds`.

    The kernel releases the lock once every copy of the descriptor is closed, however the process ends.
    """
    ends = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= ends:
                return False
            time.sleep(_LOOK_SECONDS)

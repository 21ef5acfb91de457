"""Homes belong to one user; no other user of the machine can read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.contracts.errors import ConfigurationError
from services.runtime.secret_files import FOLDER as SECRETS

OTHERS = 0o077
OURS = ("logs", "queue", "runs", SECRETS, "lock", "processes.json", "turnout.db")
"""What a launcher or a service puts into a home; the last also with endings."""


@contextmanager
def private_files() -> Iterator[None]:
    """What this process creates meanwhile is its user's alone."""
    before = os.umask(OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def private(path: str | Path, flags: int) -> int:
    """An opener for `open`: a file that it creates is its user's alone."""
    return os.open(path, flags, 0o600)


def make_private(home: Path) -> None:
    """Take others' rights from an existing home: from its content, and from the folder itself unless it holds foreign
    things too (a checkout, say, whose interpreter the sandbox's users must read). Links are not followed.

    Raises:
        ConfigurationError: something of it belongs to another user and cannot be changed.
    """
    entries = list(os.scandir(home))
    ours = [entry for entry in entries if entry.name.startswith(OURS)]
    try:
        for entry in ours:
            _tighten(entry.path)
            if entry.is_dir(follow_symlinks=False):
                for folder, names, files in os.walk(entry.path):
                    for name in (*names, *files):
                        _tighten(os.path.join(folder, name))
        if len(ours) == len(entries):
            _tighten(home)
    except PermissionError as error:
        raise ConfigurationError(
            f"{error.filename} belongs to another user but is in the home {home}.",
            remedy=f"Give it to this user (chown -R {os.geteuid()} {home}), or choose another --home.",
        ) from error


def check_weights_folder(folder: Path) -> None:
    """Keep an existing folder of published weights to this user; services make a missing one so. One that has other
    uses (/dev/shm itself) is left as it is.

    Raises:
        ConfigurationError: another user made it first, and could put other weights there.
    """
    try:
        found = folder.stat()
    except FileNotFoundError:
        return
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(
            f"TURNOUT_WEIGHTS_FOLDER is {folder}, which belongs to another user.",
            remedy="Choose another, or delete it; the services make it.",
            field="TURNOUT_WEIGHTS_FOLDER",
        )
    if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX and not folder.is_mount():
        _tighten(folder)


def _tighten(path: str | Path) -> None:
    try:
        mode = os.lstat(path).st_mode
        if mode & OTHERS and not stat.S_ISLNK(mode):
            os.chmod(path, stat.S_IMODE(mode) & ~OTHERS)
    except FileNotFoundError:
        pass  # deleted meanwhile

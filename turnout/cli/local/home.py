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
"""What a launcher or a service creates in a home; the last also with suffixes."""


@contextmanager
def private_files() -> Iterator[None]:
    """Make files that this process creates within the block private to its user."""
    before = os.umask(OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def private(path: str | Path, flags: int) -> int:
    """An opener for `open` that creates files private to their user."""
    return os.open(path, flags, 0o600)


def make_private(home: Path) -> None:
    """Remove other users' rights from an existing home: from its content, and from the folder itself unless it has
    other content too (a checkout, for example, whose interpreter the sandbox's users must read). Links are not
    followed.

    Raises:
        ConfigurationError: part of it belongs to another user and cannot be changed.
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
    """Make an existing folder of published weights private to this user; services create a missing one like that. A
    folder with other uses (/dev/shm itself) is left unchanged.

    Raises:
        ConfigurationError: another user created it, and could put other weights there.
    """
    try:
        found = folder.stat()
    except FileNotFoundError:
        return
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(
            f"TURNOUT_WEIGHTS_FOLDER is {folder}, which belongs to another user.",
            remedy="Choose another folder, or delete it; the services create it.",
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
        pass  # deleted in the meantime

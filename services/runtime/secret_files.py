"""A home's secrets: one per file in `<home>/secrets`, created once and readable only by their owner.

A file contains only the secret, as Prometheus's `credentials_file` and Docker's secrets require.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.contracts.errors import ConfigurationError, check_secret
from services.runtime.files import lock, write_atomically

FOLDER = "secrets"
SERVICE_TOKEN = "service-token"


def queue_password(user: str) -> str:
    """Name of the secret for a queue server user's password."""
    return f"queue-{user}"


def read_or_make(home: Path, name: str) -> str:
    """The secret, created if the home has none yet.

    Raises:
        ConfigurationError: the home cannot be written, or other users own its secrets.
    """
    folder = home / FOLDER
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        with _locked(folder):
            found = _read(folder / name)
            if not found:
                found = secrets.token_hex(32)
                write_atomically(folder / name, found.encode(), mode=0o600)
    except OSError as error:
        raise ConfigurationError(
            f"The home {home} cannot be written: {error.strerror}.", remedy="Choose another with --home."
        ) from error
    return found


def read(home: Path, name: str) -> str:
    """The secret; empty if the home has none or it is unreadable."""
    try:
        return _read(home / FOLDER / name)
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    with open(descriptor, encoding="utf-8", errors="replace") as file:
        if os.fstat(descriptor).st_uid not in _trusted(path):
            raise ConfigurationError(
                f"The secret {path} belongs to another user, who can read it.",
                remedy="Delete it; another is created automatically.",
            )
        text = file.read().strip()
    check_secret(str(path), text)
    return text


def _trusted(path: Path) -> set[int]:
    """Users who may have created a secret: this user, and the home's owner, who can replace everything in it."""
    return {os.geteuid(), path.parent.parent.stat().st_uid}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two launchers that start at the same time must create only one secret."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid not in _trusted(folder / "any"):
            raise ConfigurationError(
                f"The folder {folder} belongs to another user.", remedy="Delete it, or choose another --home."
            )
        os.fchmod(descriptor, 0o700)
        lock(descriptor, math.inf)
        yield
    finally:
        os.close(descriptor)

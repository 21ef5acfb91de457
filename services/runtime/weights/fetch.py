"""Fetches files of weights and checkpoints from another machine, over HTTP.

After a broken connection, and also in a later call, each file is requested from the first missing byte. The caller must
compare checksums before trusting anything.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from services.contracts.errors import UnavailableError
from services.contracts.pauses import growing_pause
from services.runtime.logs import get_logger

log = get_logger(__name__)
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 10.0
"""Time without data after which a connection is replaced."""
PATIENCE_SECONDS = 60.0
"""Time without a single byte after which the fetch fails. What has arrived is kept for the next attempt."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 3.0
MAX_MANIFEST_BYTES = 16 << 20
_REFUSALS = {401: "TURNOUT_SERVICE_TOKEN differs between the two", 404: "it does not exist or was deleted"}


class FetchError(UnavailableError):
    """Files did not arrive. Only the partially fetched files have changed."""

    title = "Fetch failed"


class BrokenError(Exception):
    """A connection broke, or a response is unusable. Worth another try."""


@dataclass(slots=True)
class Origin:
    """A folder on another machine."""

    url: str
    """The folder's URL, without a trailing slash."""
    token: str
    """The deployment's service token; empty for none."""
    _moved_at: float = field(default_factory=time.monotonic)
    """When the last byte arrived, on the monotonic clock."""

    def read(self, name: str, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        """The content of a small file. Raises `FetchError`."""
        data = bytearray()

        def take(client: httpx.Client) -> None:
            data.clear()
            with self._open(client, name, 0) as reply:
                for piece in reply.iter_raw():
                    data.extend(piece)
                    if len(data) > max_bytes:
                        raise FetchError(f"{self.url}/{name} is longer than {max_bytes} bytes.")

        self._persist(name, take)
        return bytes(data)

    def fetch(self, files: Iterable[tuple[str, int]], folder: Path) -> None:
        """Fetch files (name, bytes) into `folder`. Skips those that are already there in full length.

        Raises:
            FetchError: a file did not arrive, or the disk has no room for all of them.
            OSError: the folder cannot be written.
        """
        missing = [(name, size) for name, size in files if not _is_whole(folder / name, size)]
        needed = sum(size for _, size in missing)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free + sum(_length(_part(folder / name)) for name, _ in missing)
        if needed > free:
            raise FetchError(f"{self.url} has {needed} bytes to fetch, but {folder} has room for only {free}.")
        for name, size in missing:
            self._fetch_one(name, size, folder / name)

    def _fetch_one(self, name: str, size: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        if _length(part) > size:
            part.unlink()

        def take(client: httpx.Client) -> None:
            with part.open("ab") as file:
                have = file.tell()
                if have == size:
                    return
                with self._open(client, name, have) as reply:
                    if have and reply.headers.get("content-range") != f"bytes {have}-{size - 1}/{size}":
                        part.unlink()
                        raise BrokenError("the file's length has changed")
                    if have:
                        log.info("fetch continues", file=name, at_byte=have, bytes=size)
                    for piece in reply.iter_raw():
                        if (have := have + len(piece)) > size:
                            part.unlink()
                            raise FetchError(f"{self.url}/{name} is longer than the {size} bytes in its manifest.")
                        file.write(piece)
                        self._moved_at = time.monotonic()
                if have < size:
                    raise BrokenError(f"the response ended after {have} of {size} bytes")

        self._persist(name, take)
        part.replace(path)

    @contextmanager
    def _open(self, client: httpx.Client, name: str, start: int) -> Iterator[httpx.Response]:
        headers = {"Accept-Encoding": "identity"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if start:
            headers["Range"] = f"bytes={start}-"
        with client.stream("GET", f"{self.url}/{name}", headers=headers) as reply:
            if reply.status_code in _REFUSALS:
                raise FetchError(f"{self.url}/{name} was refused: {_REFUSALS[reply.status_code]}.")
            if reply.status_code != (206 if start else 200):
                raise BrokenError(f"the response status is {reply.status_code}")
            yield reply

    def _persist(self, name: str, take: Callable[[httpx.Client], None]) -> None:
        """Call `take` with a fresh connection until it succeeds or no byte arrives for `PATIENCE_SECONDS`."""
        self._moved_at, num_tries = time.monotonic(), 0
        while True:
            moved_at = self._moved_at
            try:
                with httpx.Client(
                    trust_env=False, timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
                ) as client:
                    take(client)
                return
            except (httpx.HTTPError, httpx.InvalidURL, BrokenError) as error:
                num_tries = 1 if self._moved_at != moved_at else num_tries + 1
                silent = time.monotonic() - self._moved_at
                reason = str(error) or type(error).__name__
                if silent > PATIENCE_SECONDS:
                    raise FetchError(
                        f"Timed out after {silent:.0f} s without data from {self.url}/{name}: {reason}.",
                        remedy="Check the network and the learner.",
                    ) from error
                log.warning("fetch interrupted, retrying", file=name, error=reason)
                time.sleep(growing_pause(FIRST_PAUSE_SECONDS, num_tries, LONGEST_PAUSE_SECONDS))


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _length(path: Path) -> int:
    """Size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0

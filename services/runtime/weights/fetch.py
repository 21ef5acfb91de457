"""Files of weights and checkpoints from another machine, over HTTP.

A broken connection is taken up again where it broke: each file is asked for from the byte on that is missing, also by a
later call. Nothing is trusted before its checksum is compared, which is the caller's part.
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
"""A connection that brings nothing for so long is given up for a new one."""
PATIENCE_SECONDS = 60.0
"""Without a single byte for so long, the fetch fails; what has come is kept for the next."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 3.0
MAX_MANIFEST_BYTES = 16 << 20
_REFUSALS = {401: "TURNOUT_SERVICE_TOKEN differs between the two", 404: "it does not have it (any more)"}


class FetchError(UnavailableError):
    """Files did not come. Nothing but the partly fetched files has changed."""

    title = "Fetch failed"


class BrokenError(Exception):
    """A connection broke, or an answer is not one to take bytes from; worth another try."""


@dataclass(slots=True)
class Origin:
    """A folder on another machine."""

    url: str
    """The folder's URL, without a slash at its end."""
    token: str
    """The deployment's service token; empty for none."""
    _moved_at: float = field(default_factory=time.monotonic)
    """When the last byte came."""

    def read(self, name: str, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        """A small file. Raises `FetchError`."""
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
        """Bring files (name, bytes) into `folder`. Those that are there already in full length are not asked for.

        Raises:
            FetchError: one did not come, or the disk has no room for all.
            OSError: the folder cannot be written.
        """
        missing = [(name, size) for name, size in files if not _is_whole(folder / name, size)]
        needed = sum(size for _, size in missing)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free + sum(_length(_part(folder / name)) for name, _ in missing)
        if needed > free:
            raise FetchError(f"{self.url} has {needed} bytes to fetch, but {folder} has room for {free}.")
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
                        raise BrokenError("the file has another length there")
                    for piece in reply.iter_raw():
                        if (have := have + len(piece)) > size:
                            part.unlink()
                            raise FetchError(f"{self.url}/{name} is longer than the {size} bytes of its manifest.")
                        file.write(piece)
                        self._moved_at = time.monotonic()
                if have < size:
                    raise BrokenError(f"it ended after {have} of {size} bytes")

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
                raise BrokenError(f"the answer was {reply.status_code}")
            yield reply

    def _persist(self, name: str, take: Callable[[httpx.Client], None]) -> None:
        """Call `take` with a new connection until it succeeds, as long as bytes come now and then."""
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
                        f"{self.url}/{name} brought no byte for {silent:.0f} s: {reason}.",
                        remedy="Check the network and the learner.",
                    ) from error
                log.warning("fetch interrupted; it continues", file=name, error=reason)
                time.sleep(growing_pause(FIRST_PAUSE_SECONDS, num_tries, LONGEST_PAUSE_SECONDS))


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _length(path: Path) -> int:
    """Bytes of a file, 0 for none."""
    return path.stat().st_size if path.is_file() else 0

"""Versions that a server fetches from the learner, with which it shares no folder, while it samples on.

    <home>/fetched/<run>/v00000012-<checksum>/    as in the weight store

The servers of one home fetch a version once: one fetches, the others wait for it. A folder's name holds its checksum,
so what an interrupted fetch has left belongs to the same bytes. Everything here can be fetched again, so it is deleted
freely.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from services.contracts.errors import TurnoutError
from services.contracts.streams import check_run_id
from services.contracts.transports.http import HttpOffer
from services.runtime.files import lock, write_atomically
from services.runtime.weights.fetch import FetchError, Origin
from services.runtime.weights.store import MANIFEST, CorruptWeightsError, parse_manifest, read_manifest

KEEP_VERSIONS = 2
"""The newest, and what another server of this home may still be reading."""
KEEP_SECONDS = 3600.0
"""For what was fetched for other runs."""
LOCK_SECONDS = 600.0
"""Longest wait for another server of this home that fetches."""
_CHECKSUM = re.compile("blake3:([0-9a-f]{64})")


class FetchedWeights:
    """The fetched versions of one home."""

    def __init__(self, folder: Path, token: str) -> None:
        """`token` is the deployment's, for the learner."""
        self._folder = folder
        self._token = token

    def bring(self, offer: HttpOffer, run_id: str, version: int, checksum: str) -> Path:
        """Folder of a version whose manifest is the one that `checksum` names; its files are not verified yet. Blocks
        until they are here.

        Raises:
            TurnoutError: they did not come, or are not what was promised.
            OSError: the home cannot be written.
        """
        named = _CHECKSUM.fullmatch(checksum)
        if named is None:
            raise CorruptWeightsError(f"{checksum[:100]!r} is not the checksum of weights.")
        run_folder = self._folder / check_run_id(run_id)
        run_folder.mkdir(parents=True, exist_ok=True)
        with (run_folder / ".lock").open("wb") as file:
            if not lock(file, LOCK_SECONDS):
                raise FetchError(f"Another server of this home has been fetching into {run_folder} for too long.")
            file.write(b"\n")  # shows when the run was last fetched for
            target = run_folder / f"v{version:08d}-{named[1][:16]}"
            if not _is_there(target, checksum):
                self._clear(run_folder, target)
                self._fetch(offer, target, run_id, version, checksum)
        return target

    def _fetch(self, offer: HttpOffer, target: Path, run_id: str, version: int, checksum: str) -> None:
        origin = Origin(f"{offer.url.rstrip('/')}/v1/runs/{run_id}/weights/{version}", self._token)
        data = origin.read(MANIFEST)
        manifest = parse_manifest(data, origin.url)
        if manifest.checksum != checksum:
            raise CorruptWeightsError(f"{origin.url} has checksum {manifest.checksum}, not {checksum}.")
        origin.fetch([(entry.name, entry.bytes) for entry in manifest.files], target)
        write_atomically(target / MANIFEST, data)

    def _clear(self, run_folder: Path, target: Path) -> None:
        """Make room: older versions, and what was fetched for other runs long ago."""
        versions = sorted((path for path in run_folder.glob("v*") if path != target), reverse=True)
        old = versions[KEEP_VERSIONS - 1 :]
        for other in self._folder.iterdir():
            mark = other / ".lock"
            if other != run_folder and (not mark.is_file() or time.time() - mark.stat().st_mtime > KEEP_SECONDS):
                old.append(other)
        for path in old:
            shutil.rmtree(path, ignore_errors=True)

    def owns(self, folder: Path) -> bool:
        return folder.is_relative_to(self._folder)

    def discard(self, folder: Path) -> None:
        """Forget a version whose files are not what its manifest promises, so that it is fetched again."""
        shutil.rmtree(folder, ignore_errors=True)


def _is_there(folder: Path, checksum: str) -> bool:
    try:
        return read_manifest(folder).checksum == checksum
    except TurnoutError:
        return False

"""Versions that a server fetches from a learner with which it shares no folder, while it continues sampling."""

from __future__ import annotations

import re
from pathlib import Path

from services.contracts.errors import TurnoutError
from services.contracts.transports.http import HttpOffer
from services.runtime.files import write_atomically
from services.runtime.weights.fetch import Origin
from services.runtime.weights.fetched import FetchedFolders
from services.runtime.weights.store import MANIFEST, CorruptWeightsError, parse_manifest, read_manifest

_CHECKSUM = re.compile("blake3:([0-9a-f]{64})")


class FetchedWeights(FetchedFolders):
    """The fetched versions of one home."""

    def __init__(self, folder: Path, token: str) -> None:
        """`token` is the deployment's service token, which the learner requires."""
        super().__init__(folder)
        self._token = token

    def bring(self, offer: HttpOffer, run_id: str, version: int, checksum: str) -> Path:
        """Folder of a version whose manifest has `checksum`, fetched if necessary. Its files are not verified yet.

        Raises:
            TurnoutError: the files did not arrive, or are not what was announced.
            OSError: the home cannot be written.
        """
        named = _CHECKSUM.fullmatch(checksum)
        if named is None:
            raise CorruptWeightsError(f"{checksum[:100]!r} is not a weight checksum.")
        with self.one(run_id, f"v{version:08d}-{named[1][:16]}") as target:
            if not _is_there(target, checksum):
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


def _is_there(folder: Path, checksum: str) -> bool:
    try:
        return read_manifest(folder).checksum == checksum
    except TurnoutError:
        return False

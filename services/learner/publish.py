"""Publishing weights: weight store, `weights` hash, event. Runs on the writer thread, beside training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from services.contracts.events import WeightsPublished
from services.learner.link import RunLink
from services.runtime.weight_store import WeightStore

KEEP_VERSIONS = 3
"""Versions kept in the weight store: the newest, and what slower servers may still be reading."""


class Publisher:
    """Publishes each version once; a resumed learner that comes past published versions again skips them."""

    def __init__(self, link: RunLink, store: WeightStore, write: Callable[[Path, Mapping[str, Tensor]], None]) -> None:
        """`write(folder, weights)` makes the files of a version."""
        self._link = link
        self._store = store
        self._write = write

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> float:
        """Make version `version` visible to rollout servers. Returns the seconds that it took."""
        started = time.monotonic()
        if version < self._link.published_version:
            return 0.0
        self._store.collect(KEEP_VERSIONS - 1)
        manifest = self._store.publish(version, lambda folder: self._write(folder, weights))
        path = self._store.path(version).resolve()
        self._link.announce({"version": str(version), "path": str(path), "checksum": manifest.checksum})
        self._link.emit(
            WeightsPublished(
                run_id=self._link.run_id,
                at=time.time(),
                version=version,
                path=str(path),
                checksum=manifest.checksum,
                bytes=manifest.bytes,
            )
        )
        self._link.published_version = version
        self._link.report(weight_version=version)
        self._link.wake_feeder()
        return time.monotonic() - started

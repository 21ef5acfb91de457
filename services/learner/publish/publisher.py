"""Publishes weights: weight store, `weights` hash, event. Runs on the writer thread while training continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from torch import Tensor

from services.contracts.errors import TurnoutError
from services.contracts.events import WeightsPublished
from services.contracts.transports.layout import LAYOUT_FILE, Layout
from services.learner.connections.redis_link import RunLink
from services.learner.publish.base import Sender
from services.learner.publish.store import StoreSender
from services.runtime.weights.store import WeightStore

KEEP_VERSIONS = 3
"""Number of versions kept in the weight store: the newest, and those that slower servers may still be reading."""


class Publisher:
    """Publishes each version once; a resumed learner skips the versions that are already published."""

    def __init__(
        self,
        link: RunLink,
        store: WeightStore,
        write: Callable[[Path, Mapping[str, Tensor]], None],
        sender: Sender,
    ) -> None:
        """`write(folder, weights)` must write the files of a version. `sender` offers versions in addition to the
        store."""
        self._sender = sender
        self._link = link
        self._store = store
        self._write = write

    @property
    def folder(self) -> Path:
        """Folder of the run's versions."""
        return self._store.folder

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> float:
        """Publish version `version` to rollout servers. Returns the time taken, in seconds."""
        started = time.monotonic()
        if version < self._link.published_version:
            return 0.0
        self._store.collect(KEEP_VERSIONS - 1)
        layout = self._load(version, weights)

        def write(folder: Path) -> None:
            self._write(folder, weights)
            if layout is not None:
                (folder / LAYOUT_FILE).write_bytes(msgspec.json.encode(layout))

        manifest = self._store.publish(version, write)
        path = self._store.path(version).resolve()
        names = {"version": str(version), "path": str(path), "checksum": manifest.checksum}
        offer = self._sender.offer()
        self._link.announce(names | {"transfer": "" if offer is None else msgspec.json.encode(offer).decode()})
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

    def renew_offer(self, published: Mapping[str, str]) -> None:
        """Offer a version that a predecessor published again, if its files are all that takes: servers without a shared
        folder that join before the next version could not get it otherwise. `published` is the `weights` hash."""
        if (offer := self._sender.standing_offer()) is not None:
            self._link.announce({**published, "transfer": msgspec.json.encode(offer).decode()})

    def _load(self, version: int, weights: Mapping[str, Tensor]) -> Layout | None:
        """Hand the version to the sender. A fault disables the sender, but does not end the run."""
        try:
            return self._sender.load(version, weights)
        except (RuntimeError, OSError, TurnoutError) as error:
            reason = str(error).split("\n")[0]
            self._link.note(
                f"The weight transport failed, so servers load weights from the store instead: {reason}", "warning"
            )
            self.close()
            return None

    def close(self) -> None:
        """Stop offering versions."""
        self._sender.close()
        self._sender = StoreSender()

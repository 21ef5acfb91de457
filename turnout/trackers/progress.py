"""How far each run has been exported: one small file per run, replaced atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from services.contracts.errors import ConfigurationError
from services.contracts.streams import check_run_id
from services.runtime.files import write_atomically


class Progress(msgspec.Struct, kw_only=True):
    """How far a run has been exported."""

    event: str = "0"
    """Id of the last event that is durable at the tracker."""
    step: int = 0
    """Newest training step. A step that a restarted learner trains again is not exported again."""
    done: set[str] = set()
    """Evaluations and groups of samples."""
    saved: dict[str, Any] = {}
    """What the tracker's `save` returned."""
    ended_at: float | None = None
    """`finished_at` of the run if its end has been exported."""


class ProgressFiles:
    """The files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, run_id: str) -> Path:
        return self.folder / f"{check_run_id(run_id)}.json"

    def read(self, run_id: str) -> Progress:
        """The progress of a run; that of an unknown run is empty. Raises `ConfigurationError` for a damaged file."""
        path = self._path(run_id)
        try:
            return msgspec.json.decode(path.read_bytes(), type=Progress)
        except FileNotFoundError:
            return Progress()
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"{path} cannot be read: {error}.",
                remedy="Delete it to export the run from its beginning.",
                field="--folder",
            ) from error

    def write(self, run_id: str, progress: Progress) -> None:
        write_atomically(self._path(run_id), msgspec.json.encode(progress))

"""The folders that a machine has fetched from a learner with which it shares no folder.

    <home>/fetched/<run>/v00000012-<checksum>/       one version of the weights
                        /step-00000010-<checksum>/   one checkpoint

Processes of one home fetch a folder once: one fetches, and the others wait. A folder's name contains its checksum, so
leftovers of an interrupted fetch belong to the same bytes. Everything can be fetched again, so it is deleted freely.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.contracts.streams import check_run_id
from services.runtime.files import lock
from services.runtime.weights.fetch import FetchError

KEEP = 2
"""Number of folders kept per kind and run: the newest, and one that another process may still be reading."""
KEEP_SECONDS = 3600.0
"""Time after which folders of other runs are deleted."""
LOCK_SECONDS = 600.0
"""Longest wait for another process to fetch."""


class FetchedFolders:
    """The fetched folders of one home."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def one(self, run_id: str, name: str) -> Iterator[Path]:
        """A folder that no other process fetches in the meantime. Names of one kind share a prefix and sort by age.

        Raises:
            FetchError: another process has been fetching for too long.
            OSError: the home cannot be written.
        """
        run_folder = self._folder / check_run_id(run_id)
        run_folder.mkdir(parents=True, exist_ok=True)
        with (run_folder / ".lock").open("wb") as file:
            if not lock(file, LOCK_SECONDS):
                raise FetchError(f"Another process of this home has been fetching into {run_folder} for too long.")
            file.write(b"\n")  # its modification time tells when the run last fetched
            self._make_room(run_folder, name)
            yield run_folder / name

    def _make_room(self, run_folder: Path, name: str) -> None:
        alike = sorted((path for path in run_folder.glob(f"{name[0]}*") if path.name != name), reverse=True)
        old = alike[KEEP - 1 :]
        for other in self._folder.iterdir():
            mark = other / ".lock"
            if other != run_folder and (not mark.is_file() or time.time() - mark.stat().st_mtime > KEEP_SECONDS):
                old.append(other)
        for path in old:
            shutil.rmtree(path, ignore_errors=True)

    def owns(self, folder: Path) -> bool:
        """Whether a folder was fetched."""
        return folder.is_relative_to(self._folder)

    def discard(self, folder: Path) -> None:
        """Delete a folder whose files do not match its manifest, so that it is fetched again."""
        shutil.rmtree(folder, ignore_errors=True)

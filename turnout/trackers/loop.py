"""Exports every run of a deployment, or some, to one tracker: those that exist, and further ones as they are created.

It only reads from the API, so no run ever waits for a tracker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from services.contracts.errors import ConfigurationError, ConflictError, NotFoundError, UnavailableError
from services.contracts.pauses import growing_pause
from services.contracts.records import Run
from services.contracts.states import RUN_STATES, TERMINAL_STATES
from services.runtime.files import lock
from turnout.client.client import Client
from turnout.trackers.base import Place, Tracker
from turnout.trackers.export import Artifacts, RunExport
from turnout.trackers.masks import masked
from turnout.trackers.progress import ProgressFiles

LONGEST_PAUSE_SECONDS: Final = 60.0
ACTIVE: Final = [state for state in RUN_STATES if state not in TERMINAL_STATES]


@dataclass(slots=True)
class _Failures:
    count: int = 0
    next_try: float = 0.0


class Exporter:
    """All runs on their way to one tracker."""

    def __init__(
        self,
        client: Client,
        kind: type[Tracker],
        place: Place,
        *,
        run_ids: Sequence[str] = (),
        page_url: str,
        samples: bool,
        artifacts: Artifacts,
        tell: Callable[[Run], None],
        warn: Callable[[str], None],
    ) -> None:
        """`run_ids`: only these runs; all if empty. `tell` gets a run once its end has been exported."""
        self._client = client
        self._only = list(run_ids)
        files = ProgressFiles(place.folder)
        self._export = partial(
            RunExport,
            client,
            kind=kind,
            place=place,
            files=files,
            page_url=page_url,
            samples=samples,
            artifacts=artifacts,
            warn=warn,
        )
        self._tell = tell
        self._warn = warn
        self._known: set[str] = set()
        self._open: dict[str, RunExport] = {}
        self._failures: dict[str, _Failures] = {}

    def round(self) -> bool:
        """Export what has happened since the last round. Returns whether nothing failed.

        Raises:
            ConfigurationError: a setting or key is wrong.
        """
        try:
            self._find()
        except UnavailableError as error:
            self._warn(masked(str(error)))
            return False
        succeeded = [self._advance(run_id) for run_id in list(self._open)]
        return all(succeeded)

    def close(self) -> None:
        """Release all runs."""
        for run_id, export in self._open.items():
            with self._reported(run_id):
                export.close()
        self._open.clear()

    def _find(self) -> None:
        """Add runs that are new, and those that were resumed after their end."""
        for run_id in self._only or self._listed():
            self._known.add(run_id)
            if run_id not in self._open:
                self._open[run_id] = self._export(run_id)

    def _listed(self) -> Iterator[str]:
        """Active runs, then runs that were created since the last call, newest first."""
        found = [run.id for run in self._client.runs(state=ACTIVE)]
        for run in self._client.runs():
            if run.id in self._known:
                break
            found.append(run.id)
        yield from dict.fromkeys(found)

    def _advance(self, run_id: str) -> bool:
        failures = self._failures.setdefault(run_id, _Failures())
        if time.monotonic() < failures.next_try:
            return False
        export = self._open[run_id]
        try:
            ended = export.advance()
        except NotFoundError:
            del self._open[run_id]
            return True
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - trackers raise anything, and other runs must not wait
            failures.count += 1
            pause = growing_pause(1.0, failures.count, LONGEST_PAUSE_SECONDS)
            failures.next_try = time.monotonic() + pause
            self._warn(f"{run_id}: {masked(f'{type(error).__name__}: {error}')} Trying again in {pause:.0f} s.")
            with self._reported(run_id):
                export.forget()
            return False
        del self._failures[run_id]
        if export.is_complete:
            del self._open[run_id]
        if ended is not None:
            self._tell(ended)
        return True

    @contextmanager
    def _reported(self, run_id: str) -> Iterator[None]:
        """Whatever a tracker raises while it is closed."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - nothing depends on it: what was not confirmed is exported again
            self._warn(f"{run_id}: {masked(f'{type(error).__name__}: {error}')}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder and keep other exporters out of it.

    Raises:
        ConfigurationError: it cannot be written.
        ConflictError: another exporter uses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("wb")
    except OSError as error:
        raise ConfigurationError(
            f"The folder {folder} cannot be written: {error.strerror}.",
            remedy="Choose another with --folder.",
            field="--folder",
        ) from error
    with file:
        if not lock(file):
            raise ConflictError(
                f"Another exporter uses {folder}.", remedy="Stop it, or choose another folder with --folder."
            )
        yield

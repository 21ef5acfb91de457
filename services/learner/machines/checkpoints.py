"""The checkpoint that a run resumes from, on a machine that shares no folder with the main learner."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from services.learner.checkpoint import Loaded, load, read
from services.learner.settings import load_learner_settings
from services.runtime.files import write_atomically
from services.runtime.settings import Settings
from services.runtime.weights.checkpoint_files import (
    CorruptCheckpointError,
    checkpoint_step,
    parse_checkpoint_manifest,
)
from services.runtime.weights.fetch import Origin
from services.runtime.weights.fetched import FetchedFolders
from services.runtime.weights.store import MANIFEST


def checkpoint_here(named: Path, settings: Settings, run_id: str) -> Loaded:
    """The checkpoint that rank 0 has verified and names: from its own folder if that is on this machine, else fetched
    from the main learner and verified here.

    Raises:
        TurnoutError: it did not come, or is not what its manifest promises.
        OSError: the home cannot be written.
    """
    main = load_learner_settings(settings).main
    if not main:
        return read(named)
    origin = Origin(f"{main.rstrip('/')}/v1/runs/{run_id}/checkpoints/{checkpoint_step(named)}", settings.service_token)
    data = origin.read(MANIFEST)
    if (named / MANIFEST).is_file() and (named / MANIFEST).read_bytes() == data:
        return read(named)
    fetched = FetchedFolders(settings.home / "fetched")
    with fetched.one(run_id, f"{named.name}-{blake3(data).hexdigest()[:16]}") as target:
        manifest = parse_checkpoint_manifest(data, target)
        origin.fetch([(entry.name, entry.bytes) for entry in manifest.files], target)
        write_atomically(target / MANIFEST, data)
        try:
            return load(target)
        except CorruptCheckpointError:
            fetched.discard(target)
            raise

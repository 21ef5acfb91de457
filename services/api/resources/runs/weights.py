"""Which weights of a run an evaluation or a model on demand gets, and its own copy of them.

The copy (hard links) pins it to one version: the run may continue, delete the version, or be deleted.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from services.contracts.errors import ConfigurationError, ConflictError, TurnoutError, UnavailableError
from services.runtime.files import sync, write_atomically
from services.runtime.settings import Settings
from services.runtime.weights.checkpoint_files import (
    CorruptCheckpointError,
    checkpoint_folder,
    checkpoint_steps,
    link_file,
    read_checkpoint_manifest,
)
from services.runtime.weights.store import (
    MANIFEST,
    CorruptWeightsError,
    FileEntry,
    Manifest,
    WeightStore,
    digests_of,
    read_manifest,
)

MODEL = "hf"
"""Folder of a checkpoint, and of an evaluation or model on demand, with a model in Hugging Face format."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of a run on disk."""

    step: int
    folder: Path | None
    """A published version or a checkpoint's model; None for the model that the run started from."""
    is_version: bool


@dataclass(frozen=True, slots=True)
class Pinned:
    """The own weights of an evaluation or a model on demand."""

    model: str | None
    """Folder of the model; None for the run's own model."""
    weights: dict[str, Any] | None
    """The version to load into that model, as announced in Redis; None for none."""


def choose(settings: Settings, run_id: str, wanted: int | None, *, is_fork: bool) -> Weights:
    """The weights of a run at a step, or the newest on disk. A version is preferred to the checkpoint of its step.

    Raises:
        ConfigurationError: there are none of this step; lists those that exist.
        ConflictError: the run has none at all.
    """
    found = {} if is_fork else {0: Weights(0, None, False)}
    run_folder = settings.run_folder(run_id)
    for step in checkpoint_steps(run_folder):
        folder = checkpoint_folder(run_folder, step)
        if _is_checkpoint(folder):
            found[step] = Weights(step, folder / MODEL, False)
    store = WeightStore(settings.weights_of(run_id), run_id)
    for step in store.versions():
        if (store.path(step) / MANIFEST).exists():
            found[step] = Weights(step, store.path(step), True)
    if not found:
        raise ConflictError(
            f"Run {run_id} has no weights on disk yet.", remedy="Wait for its first step, or name its model."
        )
    if wanted is not None and wanted not in found:
        raise ConfigurationError(
            f"step is {wanted}, but run {run_id} has no weights of that step on disk.",
            remedy=f"Choose one of {', '.join(map(str, sorted(found)))}, or leave it out for the newest.",
            field="step",
        )
    return found[max(found) if wanted is None else wanted]


def pin(settings: Settings, owner: str, weights: Weights) -> Pinned:
    """Link the weights into the folder of `owner`, the id of an evaluation or a model on demand. Bytes are verified by
    the rollout server that loads them.

    Raises:
        ConflictError: the run deleted them in the meantime.
        UnavailableError: the folder cannot be written.
    """
    try:
        if weights.folder is None:
            return Pinned(None, None)
        if weights.is_version or _has_adapter(weights.folder):
            return Pinned(None, _pin_version(settings.weights_of(owner), owner, weights))
        target = settings.run_folder(owner) / MODEL
        _link_all(weights.folder, target)
        return Pinned(str(target.resolve()), None)
    except (CorruptCheckpointError, CorruptWeightsError, FileNotFoundError) as error:
        raise ConflictError(
            f"The weights of step {weights.step} can no longer be used: {error}",
            remedy="Ask again; there may be newer ones.",
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"The weights could not be linked into a folder of their own: {error.strerror}.",
            remedy="Check the disk that holds TURNOUT_HOME.",
        ) from error


def _pin_version(folder: Path, owner: str, weights: Weights) -> dict[str, Any]:
    """A version of the owner's own, with a manifest in its name."""
    assert weights.folder is not None
    target = WeightStore(folder, owner).path(weights.step)
    if weights.is_version:
        entries = read_manifest(weights.folder).files
        _link_all(weights.folder, target, [entry.name for entry in entries])
    else:
        _link_all(weights.folder, target, ["adapter_config.json", "adapter_model.safetensors"])
        files = sorted(target.iterdir())
        digests = zip(files, digests_of(files), strict=True)
        entries = [FileEntry(path.name, path.stat().st_size, digest) for path, digest in digests]
    manifest = Manifest(owner, weights.step, entries)
    write_atomically(target / MANIFEST, msgspec.json.encode(manifest))
    return {"version": weights.step, "path": str(target.resolve()), "checksum": manifest.checksum}


def _link_all(source: Path, target: Path, names: list[str] | None = None) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in names or [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        link_file(source / name, target / name)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        sync(folder)


def _has_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists()


def _is_checkpoint(folder: Path) -> bool:
    try:
        read_checkpoint_manifest(folder)
    except TurnoutError:
        return False
    return True

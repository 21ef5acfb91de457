"""The layout of a run's checkpoints on disk, and how a run passes a checkpoint to another.

    <home>/runs/<run>/checkpoints/step-00000010/manifest.json    bytes and SHA-256 of every file

Files of a finished checkpoint are never written again, only deleted. Runs can therefore share them by hard links, and
each run may delete its own names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import msgspec

from services.contracts.errors import TurnoutError
from services.runtime.files import numbers_in, sync
from services.runtime.weights.store import MANIFEST


class CorruptCheckpointError(TurnoutError):
    """A checkpoint is incomplete or differs from its manifest. It must not be loaded."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    """Path relative to the checkpoint."""
    bytes: int
    sha256: str


class CheckpointManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    files: list[FileEntry]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)


def sha256_of(path: Path) -> str:
    """SHA-256, which any machine's tools can check, because checkpoints outlive the software that wrote them."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"step-{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """The step of a checkpoint's folder. Raises `CorruptCheckpointError` for another name."""
    name = folder.name.removeprefix("step-")
    if not name.isdecimal():
        raise CorruptCheckpointError(f"{folder} is not a checkpoint's folder.")
    return int(name)


def checkpoint_steps(run_folder: Path) -> list[int]:
    """Steps that have a checkpoint, ascending, including damaged ones."""
    return numbers_in(run_folder / "checkpoints", "step-")


def read_checkpoint_manifest(folder: Path) -> CheckpointManifest:
    """The manifest, with every name checked to be inside the checkpoint.

    Raises:
        CorruptCheckpointError: it is unreadable, or names a file outside the checkpoint.
    """
    try:
        return parse_checkpoint_manifest((folder / MANIFEST).read_bytes(), folder)
    except OSError as error:
        raise CorruptCheckpointError(f"Checkpoint {folder} is not complete: {error}.") from error


def parse_checkpoint_manifest(data: bytes, folder: Path) -> CheckpointManifest:
    """The manifest of a checkpoint in `folder`; otherwise as `read_checkpoint_manifest`."""
    try:
        manifest = msgspec.json.decode(data, type=CheckpointManifest)
    except msgspec.DecodeError as error:
        raise CorruptCheckpointError(f"Checkpoint {folder} is not complete: {error}.") from error
    for entry in manifest.files:
        if not (folder / entry.name).resolve().is_relative_to(folder.resolve()):
            raise CorruptCheckpointError(f"Checkpoint {folder} lists {entry.name!r}, which is outside the checkpoint.")
    return manifest


def give_checkpoint(source_run: Path, target_run: Path, step: int) -> CheckpointManifest:
    """Put a run's checkpoint into another run's folder: hard links, copies where the file system has none.

    Atomic: the target has the whole checkpoint or nothing. Contents are not read; loading compares every checksum.

    Raises:
        CorruptCheckpointError: the checkpoint is incomplete, or was deleted meanwhile.
        OSError: the target cannot be written.
    """
    source, target = checkpoint_folder(source_run, step), checkpoint_folder(target_run, step)
    manifest = read_checkpoint_manifest(source)
    temporary = target.with_name(f".writing-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in (*(entry.name for entry in manifest.files), MANIFEST):
        destination = temporary / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        link_file(source / name, destination)
    for folder in {path.parent for path in temporary.rglob("*")}:
        sync(folder)
    os.rename(temporary, target)
    sync_names(target_run)
    return manifest


def sync_names(run_folder: Path) -> None:
    """Make the folders above a run's checkpoints durable, since they may be as new as its first checkpoint."""
    for folder in (run_folder / "checkpoints", run_folder, run_folder.parent, run_folder.parent.parent):
        sync(folder)


def link_file(source: Path, destination: Path) -> None:
    """A hard link to a file that is never written again, or a durable copy.

    Raises:
        CorruptCheckpointError: the file is missing.
        OSError: the destination cannot be written.
    """
    if not source.is_file() or source.is_symlink():
        raise CorruptCheckpointError(f"Checkpoint file {source} is missing.")
    try:
        os.link(source, destination)
    except OSError:  # another file system, or no hard links
        try:
            shutil.copyfile(source, destination)
        except FileNotFoundError as error:
            raise CorruptCheckpointError(f"Checkpoint file {source} is missing.") from error
        with destination.open("rb") as file:
            os.fsync(file.fileno())

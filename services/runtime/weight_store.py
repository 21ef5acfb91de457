"""Versioned weights on disk: safetensors in one folder a version, a manifest with checksums written last.

A version is visible only once its manifest exists, and the manifest is renamed into place after everything else is
written and synced. A reader verifies every file's SHA-256 against the manifest before it trusts a byte.

    <home>/runs/<run>/weights/v00000012/model-00001-of-00002.safetensors
                                       /manifest.json

The folder may lie in memory instead (`TURNOUT_WEIGHTS_FOLDER`): a published version need not outlive the machine, since
the learner publishes again from its checkpoint what it no longer finds whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from services.contracts.errors import TurnoutError

MANIFEST = "manifest.json"
_CHUNK = 1 << 20


class CorruptWeightsError(TurnoutError):
    """A weight folder is incomplete or its bytes differ from the manifest. It must not be loaded."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a version consists of."""

    run_id: str
    version: int
    files: list[FileEntry]

    @property
    def checksum(self) -> str:
        """`sha256:<hex>` over the manifest, and so over every file: the identity of the weights."""
        return "sha256:" + hashlib.sha256(msgspec.json.encode(self)).hexdigest()

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)


class WeightStore:
    """The weights of one run."""

    def __init__(self, folder: Path, run_id: str) -> None:
        """`folder` holds one folder a version and nothing else."""
        self.folder = folder
        self.run_id = run_id

    def path(self, version: int) -> Path:
        return self.folder / f"v{version:08d}"

    def publish(self, version: int, write: Callable[[Path], None]) -> Manifest:
        """Write one version: `write(folder)` puts the safetensors files there. Replaces an old try."""
        target = self.path(version)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        write(target)
        files = sorted(target.iterdir())
        digests = sha256_of_all(files)
        entries = []
        for path, digest in zip(files, digests, strict=True):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            entries.append(FileEntry(path.name, path.stat().st_size, digest))
        manifest = Manifest(self.run_id, version, entries)
        write_atomically(target / MANIFEST, msgspec.json.encode(manifest))
        return manifest

    def read_manifest(self, version: int) -> Manifest:
        return read_manifest(self.path(version))

    def latest(self) -> int | None:
        """Newest complete version, or None."""
        versions = [int(path.name[1:]) for path in self.folder.glob("v*") if (path / MANIFEST).exists()]
        return max(versions, default=None)

    def collect(self, keep: int) -> None:
        """Delete all but the newest `keep` versions."""
        for path in sorted(self.folder.glob("v*"), reverse=True)[keep:]:
            shutil.rmtree(path, ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a weight folder. Raises `CorruptWeightsError` where it is missing or unreadable."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise CorruptWeightsError(f"Weight folder {folder} has no readable manifest: {error}.") from error


def verify(folder: Path, checksum: str | None = None) -> Manifest:
    """Check every file of a weight folder against its manifest, and the manifest against `checksum`.

    Raises:
        CorruptWeightsError: names the first thing that differs.
    """
    manifest = read_manifest(folder)
    if checksum is not None and manifest.checksum != checksum:
        raise CorruptWeightsError(f"Weight folder {folder} has checksum {manifest.checksum}, not {checksum}.")
    for entry in manifest.files:
        if "/" in entry.name or entry.name.startswith("."):
            raise CorruptWeightsError(f"Weight folder {folder} lists {entry.name!r}, which is not a plain file name.")
        path = folder / entry.name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise CorruptWeightsError(f"Weight file {path} is missing or not {entry.bytes} bytes long.")
    paths = [folder / entry.name for entry in manifest.files]
    for path, entry, digest in zip(paths, manifest.files, sha256_of_all(paths), strict=True):
        if digest != entry.sha256:
            raise CorruptWeightsError(f"Weight file {path} differs from its checksum.")
    return manifest


def sha256_of_all(paths: Sequence[Path]) -> list[str]:
    """Digests of several files, on as many cores as there are."""
    with ThreadPoolExecutor(max(1, min(len(paths), os.cpu_count() or 1))) as pool:
        return list(pool.map(sha256_of, paths))


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

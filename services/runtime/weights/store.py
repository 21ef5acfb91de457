"""Versioned weights on disk: safetensors in one folder per version, with a manifest of checksums that is written last.

A version is visible only once its manifest exists, and the manifest is renamed into place after everything else is
written and synced. A reader verifies every file's BLAKE3 against the manifest before it trusts a byte.

    <home>/runs/<run>/weights/v00000012/model-00001-of-00002.safetensors
                                       /manifest.json

The folder may be in memory instead (`TURNOUT_WEIGHTS_FOLDER`). A published version need not survive a reboot, since the
learner publishes missing or damaged versions again from its checkpoint.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from blake3 import blake3

from services.contracts.errors import TurnoutError
from services.runtime.files import numbers_in, write_atomically

MANIFEST = "manifest.json"
_CHUNK = 1 << 20
_SETTLED_NANOSECONDS = 50_000_000
"""A file changed more recently than this may change again within the same tick of its timestamps."""
Marks = dict[str, list[int]]
"""File name to inode, size in bytes, mtime and ctime (nanoseconds)."""


class CorruptWeightsError(TurnoutError):
    """A weight folder is incomplete or its bytes differ from the manifest. It must not be loaded."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    bytes: int
    blake3: str
    """BLAKE3 of the file's bytes, hex."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of a version."""

    run_id: str
    version: int
    files: list[FileEntry]

    @property
    def checksum(self) -> str:
        """`blake3:<hex>` over the manifest, and so over every file: the identity of the weights."""
        return "blake3:" + blake3(msgspec.json.encode(self)).hexdigest()

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)


class WeightStore:
    """The weights of one run."""

    def __init__(self, folder: Path, run_id: str) -> None:
        """`folder` contains one folder per version and nothing else."""
        self.folder = folder
        self.run_id = run_id

    def path(self, version: int) -> Path:
        return self.folder / f"v{version:08d}"

    def publish(self, version: int, write: Callable[[Path], None]) -> Manifest:
        """Write one version: `write(folder)` must write the safetensors files. Replaces an earlier attempt."""
        target = self.path(version)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        write(target)
        files = sorted(target.iterdir())
        digests = digests_of(files)
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

    def versions(self) -> list[int]:
        """Versions that have a folder, ascending, including incomplete ones."""
        return numbers_in(self.folder, "v")

    def collect(self, keep: int) -> None:
        """Delete all but the newest `keep` versions."""
        for version in self.versions()[::-1][keep:]:
            shutil.rmtree(self.path(version), ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a weight folder. Raises `CorruptWeightsError` if it is missing or unreadable."""
    try:
        return parse_manifest((folder / MANIFEST).read_bytes(), str(folder))
    except OSError as error:
        raise CorruptWeightsError(f"Weight folder {folder} has no readable manifest: {error}.") from error


def parse_manifest(data: bytes, place: str) -> Manifest:
    """The manifest of the weight folder `place`, its names plain. Raises `CorruptWeightsError`."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise CorruptWeightsError(f"Weight folder {place} has no readable manifest: {error}.") from error
    for entry in manifest.files:
        if "/" in entry.name or entry.name.startswith("."):
            raise CorruptWeightsError(f"Weight folder {place} lists {entry.name!r}, which is not a plain file name.")
    return manifest


def verify(folder: Path, checksum: str | None = None, marks: Marks | None = None) -> Manifest:
    """Check every file of a weight folder against its manifest, and the manifest against `checksum`.

    `marks` are from `verify_and_mark`: files that have not changed since are not read again.

    Raises:
        CorruptWeightsError: names the first thing that differs.
    """
    manifest = read_manifest(folder)
    if checksum is not None and manifest.checksum != checksum:
        raise CorruptWeightsError(f"Weight folder {folder} has checksum {manifest.checksum}, not {checksum}.")
    for entry in manifest.files:
        path = folder / entry.name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise CorruptWeightsError(f"Weight file {path} is missing or not {entry.bytes} bytes long.")
    if marks and marks == _marks_of(folder, manifest):
        return manifest
    paths = [folder / entry.name for entry in manifest.files]
    for path, entry, digest in zip(paths, manifest.files, digests_of(paths), strict=True):
        if digest != entry.blake3:
            raise CorruptWeightsError(f"Weight file {path} differs from its checksum.")
    return manifest


def verify_and_mark(folder: Path, checksum: str) -> Marks:
    """Verify a folder completely. Returns marks that reveal later changes; empty if a change could go undetected.

    Raises:
        CorruptWeightsError: names the first thing that differs.
    """
    try:
        marks = _marks_of(folder, read_manifest(folder))
    except OSError as error:
        raise CorruptWeightsError(f"Weight folder {folder} is incomplete: {error}.") from error
    now = time.time_ns()
    verify(folder, checksum)
    settled = all(now - max(mark[2:]) > _SETTLED_NANOSECONDS for mark in marks.values())
    return marks if settled else {}


def _marks_of(folder: Path, manifest: Manifest) -> Marks:
    found = ((entry.name, (folder / entry.name).stat()) for entry in manifest.files)
    return {name: [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in found}


def read_verified(folder: Path, name: str, checksum: str) -> tuple[Manifest, bytes]:
    """The manifest and one small file of a weight folder, checked as in `verify`.

    Raises:
        CorruptWeightsError: the manifest is not the one that `checksum` names, or the file is missing or differs.
    """
    manifest = read_manifest(folder)
    if manifest.checksum != checksum:
        raise CorruptWeightsError(f"Weight folder {folder} has checksum {manifest.checksum}, not {checksum}.")
    entry = next((entry for entry in manifest.files if entry.name == name), None)
    if entry is None or not (folder / name).is_file():
        raise CorruptWeightsError(f"Weight folder {folder} has no file {name}.")
    data = (folder / name).read_bytes()
    if blake3(data).hexdigest() != entry.blake3:
        raise CorruptWeightsError(f"Weight file {folder / name} differs from its checksum.")
    return manifest, data


def digests_of(paths: Sequence[Path]) -> list[str]:
    """BLAKE3 of several files, computed on all cores."""
    with ThreadPoolExecutor(max(1, min(len(paths), os.cpu_count() or 1))) as pool:
        return list(pool.map(_digest_of, paths))


def _digest_of(path: Path) -> str:
    """Reads instead of mapping, because a mapped file that shrinks meanwhile would kill the process."""
    digest = blake3()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()

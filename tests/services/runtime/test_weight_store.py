"""Weights on disk: whole and verified, or refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from services.runtime.weights import store as weight_store
from services.runtime.weights.store import MANIFEST, CorruptWeightsError, WeightStore, verify, verify_and_mark


def publish(store: WeightStore, version: int, data: bytes = b"weights") -> str:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(data)

    return store.publish(version, write).checksum


def test_a_published_version_verifies(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, "run-1")
    publish(store, 0)
    checksum = publish(store, 3)
    assert verify(store.path(3), checksum).version == 3
    assert verify(store.path(3)).bytes == len(b"weights")


def test_the_checksum_identifies_version_and_bytes(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, "run-1")
    first = publish(store, 1, b"a")
    assert publish(store, 1, b"a") == first
    assert publish(store, 1, b"b") != first
    assert publish(store, 2, b"a") != first


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no manifest", "bad manifest", "path"])
def test_damage_is_named_and_refused(tmp_path: Path, damage: str) -> None:
    store = WeightStore(tmp_path, "run-1")
    checksum = publish(store, 1)
    folder = store.path(1)
    weights, manifest = folder / "model.safetensors", folder / MANIFEST
    if damage == "flip":
        weights.write_bytes(b"weightz")
    elif damage == "cut":
        weights.write_bytes(b"weig")
    elif damage == "missing":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "bad manifest":
        manifest.write_text("{}")
    else:
        manifest.write_text(manifest.read_text().replace("model.safetensors", "../model.safetensors"))
    with pytest.raises(CorruptWeightsError, match=str(folder)):
        verify(folder, None if damage == "path" else checksum)


def settle(folder: Path) -> None:
    """Wait until the clock that stamps files has moved on far enough for a change to be seen."""
    while not verify_and_mark(folder, verify(folder).checksum):
        pass


@pytest.mark.parametrize("change", ["bytes", "bytes, time put back", "replaced"])
def test_a_file_that_changes_after_it_was_verified_is_read_again(tmp_path: Path, change: str) -> None:
    store = WeightStore(tmp_path, "run-1")
    checksum = publish(store, 1)
    folder = store.path(1)
    weights = folder / "model.safetensors"
    settle(folder)
    marks = verify_and_mark(folder, checksum)
    before = weights.stat()
    if change == "replaced":
        (folder / "new").write_bytes(b"weightz")
        (folder / "new").rename(weights)
    else:
        weights.write_bytes(b"weightz")
    if change != "bytes":
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorruptWeightsError, match="differs from its checksum"):
        verify(folder, checksum, marks)


def test_unchanged_files_are_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = WeightStore(tmp_path, "run-1")
    checksum = publish(store, 1)
    settle(store.path(1))
    marks = verify_and_mark(store.path(1), checksum)
    monkeypatch.setattr(weight_store, "digests_of", lambda paths: pytest.fail("read again"))
    assert verify(store.path(1), checksum, marks).version == 1
    with pytest.raises(CorruptWeightsError, match="has checksum"):
        verify(store.path(1), "blake3:00", marks)


def test_a_file_written_a_moment_ago_gets_no_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change within one tick of the file system's clock would leave the same times."""
    store = WeightStore(tmp_path, "run-1")
    checksum = publish(store, 1)
    written = (store.path(1) / "model.safetensors").stat().st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: written + 1_000_000)
    assert verify_and_mark(store.path(1), checksum) == {}


def test_a_manifest_of_an_older_format_counts_as_unreadable(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, "run-1")
    publish(store, 1)
    manifest = store.path(1) / MANIFEST
    manifest.write_text(manifest.read_text().replace("blake3", "sha256"))
    with pytest.raises(CorruptWeightsError, match="no readable manifest"):
        verify(store.path(1))


def test_another_versions_checksum_is_refused(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, "run-1")
    publish(store, 1)
    with pytest.raises(CorruptWeightsError, match="has checksum"):
        verify(store.path(1), "blake3:00")


def test_old_versions_are_collected(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, "run-1")
    for version in range(5):
        publish(store, version)
    (store.folder / "v00000004-mine").mkdir()
    store.collect(keep=2)
    names = ["v00000003", "v00000004", "v00000004-mine"]
    assert [path.name for path in sorted(store.folder.iterdir())] == names

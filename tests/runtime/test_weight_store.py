"""Weights on disk: whole and verified, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runtime.weight_store import MANIFEST, CorruptWeightsError, WeightStore, verify


def publish(store: WeightStore, version: int, data: bytes = b"weights") -> str:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(data)

    return store.publish(version, write).checksum


def test_a_published_version_verifies_and_is_the_latest(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, "run-1")
    assert store.latest() is None
    publish(store, 0)
    checksum = publish(store, 3)
    assert store.latest() == 3
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


def test_another_versions_checksum_is_refused(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, "run-1")
    publish(store, 1)
    with pytest.raises(CorruptWeightsError, match="has checksum"):
        verify(store.path(1), "sha256:00")


def test_a_version_without_manifest_does_not_count(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, "run-1")
    publish(store, 1)
    (store.path(2)).mkdir()
    assert store.latest() == 1


def test_old_versions_are_collected(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, "run-1")
    for version in range(5):
        publish(store, version)
    store.collect(keep=2)
    assert [path.name for path in sorted(store.folder.iterdir())] == ["v00000003", "v00000004"]

"""Checkpoints: complete and verified, or rejected by name and skipped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from services.learner.checkpoint import FORMAT, CheckpointStore, Snapshot, State, read
from services.learner.model.export import read_safetensors, write_safetensors
from services.runtime.weights.checkpoint_files import CorruptCheckpointError, give_checkpoint


def snapshot(step: int) -> Snapshot:
    weights = {"layer.weight": torch.full((2, 3), float(step))}
    state = State(format=FORMAT, run_id="r", step=step, updates=step, ledger={"trained": 4 * step})
    moments = {"layer.weight/exp_avg": torch.randn(2, 3), "layer.weight/exp_avg_sq": torch.rand(2, 3)}
    return Snapshot(state, weights, moments, {"layer.weight": torch.zeros(2, 3)}, torch.get_rng_state())


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    def save_model(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        write_safetensors(folder, "model", weights)
        (folder / "config.json").write_text("{}")

    return CheckpointStore(tmp_path, save_model)


def test_a_written_checkpoint_can_be_loaded(store: CheckpointStore) -> None:
    written = snapshot(3)
    path, size = store.write(written)
    loaded = store.load_newest(pytest.fail)
    assert loaded is not None
    assert loaded.folder == path
    assert loaded.state == written.state
    assert size > 0
    assert {name: value.tolist() for name, value in loaded.optimizer().items()} == {
        name: value.tolist() for name, value in written.optimizer.items()
    }
    assert torch.equal(loaded.random_state(), written.random_state)
    assert (loaded.model_path / "config.json").exists()
    assert torch.equal(read_safetensors(loaded.model_path, "model")["layer.weight"], written.weights["layer.weight"])


@pytest.mark.parametrize(
    "damage",
    ["manifest.json", "hf/model.safetensors", "state/optimizer.safetensors", "state/state.json", "hf/config.json"],
)
@pytest.mark.parametrize("way", ["removed", "cut", "changed"])
def test_a_damaged_checkpoint_is_rejected_and_the_previous_one_used(
    store: CheckpointStore, damage: str, way: str
) -> None:
    store.write(snapshot(2))
    newest, _ = store.write(snapshot(4))
    victim = newest / damage
    content = victim.read_bytes()
    if way == "removed":
        victim.unlink()
    elif way == "cut":
        victim.write_bytes(content[:-1])
    else:
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    told: list[str] = []
    loaded = store.load_newest(told.append)
    assert loaded is not None
    assert loaded.state.step == 2
    assert len(told) == 1
    assert "step-00000004" in told[0]


def test_a_skipped_checkpoint_does_not_count_towards_keep_last(store: CheckpointStore) -> None:
    store.write(snapshot(2))
    torn, _ = store.write(snapshot(3))
    (torn / "manifest.json").unlink()
    assert store.load_newest(lambda _: None) is not None
    assert store.steps() == [2]
    store.write(snapshot(4))
    store.collect(keep_last=2, keep_best=1, accuracies={2: 0.2, 3: 0.9, 4: 0.1})
    assert store.steps() == [2, 4]
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000002", "step-00000004"]


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(store: CheckpointStore) -> None:
    path, _ = store.write(snapshot(2))
    (path / "manifest.json").unlink()
    with pytest.raises(CorruptCheckpointError, match="None of the checkpoints"):
        store.load_newest(lambda _: None)
    assert store.steps() == [2], "nor at the next start"


def test_a_half_written_checkpoint_does_not_count(store: CheckpointStore) -> None:
    store.write(snapshot(2))
    half = store.folder / ".writing-step-00000004"
    half.mkdir()
    (half / "manifest.json").write_text("{}")
    assert store.steps() == [2]
    store.write(snapshot(4))
    assert store.steps() == [2, 4]
    assert not half.exists()
    other = store.folder / ".writing-step-00000003"
    other.mkdir()
    store.clear(".writing-*")
    assert not other.exists(), "leftovers of another step would fill the disk"


def test_a_users_copy_next_to_the_checkpoints_is_none(store: CheckpointStore) -> None:
    path, _ = store.write(snapshot(2))
    for name in ("step-00000002.bak", "step-2", "step-00000009 (copy)", "step-notes"):
        shutil.copytree(path, store.folder / name)
    loaded = store.load_newest(pytest.fail)
    assert loaded is not None
    assert loaded.folder == path
    store.write(snapshot(3))
    store.collect(keep_last=1, keep_best=0, accuracies={})
    assert store.steps() == [3]
    assert (store.folder / "step-00000002.bak").exists()


def test_ranks_other_than_0_do_not_verify_the_tensors_again(store: CheckpointStore) -> None:
    """Rank 0 has compared every byte; eight ranks would read eight times as many."""
    written = snapshot(2)
    path, _ = store.write(written)
    (path / "state" / "optimizer.safetensors").unlink()
    assert read(path).state == written.state


def test_the_parent_folders_of_a_new_checkpoint_are_durable_too(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its groups are acknowledged next, so a power cut must not undo a folder made for a run's first checkpoint."""
    synced: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(
        "services.runtime.weights.checkpoint_files.sync",
        lambda folder: synced.append((folder, sorted(path.name for path in folder.iterdir()))),
    )
    path, _ = store.write(snapshot(2))
    fork = tmp_path / "runs" / "fork"
    give_checkpoint(tmp_path, fork, 2)
    for target in (path, fork / "checkpoints" / path.name):
        for child in (target, target.parent, target.parent.parent):
            assert (child.parent, True) in [(folder, child.name in names) for folder, names in synced], child


def test_keeps_the_newest_and_the_best(store: CheckpointStore) -> None:
    for step in (1, 2, 3, 4, 5):
        store.write(snapshot(step))
    store.collect(keep_last=2, keep_best=1, accuracies={1: 0.2, 2: 0.9, 3: 0.9, 4: 0.1})
    assert store.steps() == [3, 4, 5]


def test_large_models_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.learner.model.export.SHARD_BYTES", 100)
    tensors = {f"t{n}": torch.arange(20, dtype=torch.float32) + n for n in range(3)}
    write_safetensors(tmp_path, "model", tensors)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    assert (tmp_path / "model.safetensors.index.json").exists()
    back = read_safetensors(tmp_path, "model")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())

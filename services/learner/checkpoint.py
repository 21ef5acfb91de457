"""Checkpoints: complete and verified, or absent.

    <home>/runs/<run>/checkpoints/step-00000010/hf/            model and tokenizer in Hugging Face format; with LoRA
                                                               the adapter and the tokenizer in PEFT's (of a base
                                                               model in 4 bits the whole model)
                                               /state/         optimizer.safetensors, teacher.safetensors, state.json,
                                                               adapter.safetensors if hf has the whole model
                                               /manifest.json  bytes and SHA-256 of every file

A checkpoint is written into a temporary folder, synced, and renamed. Loading verifies every checksum and falls back
from a damaged checkpoint to the previous one. Tensors are safetensors and the rest is JSON, so a checkpoint cannot
contain code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from torch import Tensor

from services.learner.groups.curriculum import CurriculumState
from services.learner.model.export import read_safetensors, write_safetensors
from services.learner.model.fixed_teacher import TeacherSource
from services.learner.objectives.teacher_gate import GateState
from services.runtime.files import sync, write_atomically
from services.runtime.weights.checkpoint_files import (
    CheckpointManifest,
    CorruptCheckpointError,
    FileEntry,
    checkpoint_folder,
    checkpoint_steps,
    read_checkpoint_manifest,
    sha256_of,
    sync_names,
)
from services.runtime.weights.store import MANIFEST

FORMAT = 1
_RANDOM = "random_state"
SaveModel = Callable[[Path, Mapping[str, Tensor]], None]


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The state of a run apart from its tensors."""

    format: int
    run_id: str
    step: int
    """Number of finished training steps, which is also the version of the weights."""
    updates: int
    """Number of optimizer updates done."""
    ledger: dict[str, int]
    """`Ledger.to_json`; trained + dropped is the position in the feeding order from which groups are replayed."""
    curriculum: CurriculumState | None = None
    """Pools and choices, if the run has a curriculum."""
    teacher_gate: GateState | None = None
    """Of a run whose teacher is gated."""
    teacher: TeacherSource | None = None
    """Of a run with `objective.teacher_path`."""
    base: str | None = None
    """SHA-256 of the base model in 4 bits, of a run with `model.lora.load_in_4bit`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything in a checkpoint, as copies in CPU memory that training does not touch."""

    state: State
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    random_state: Tensor
    """State of torch's generator on rank 0, uint8."""
    adapter: Mapping[str, Tensor] = field(default_factory=dict)
    """Of a run with `model.lora.load_in_4bit`, whose `weights` are the whole policy."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A verified checkpoint. The model at `model_path` is loaded separately."""

    folder: Path
    state: State

    @property
    def model_path(self) -> Path:
        return self.folder / "hf"

    def optimizer(self) -> dict[str, Tensor]:
        return read_safetensors(self.folder / "state", "optimizer")

    def teacher(self) -> dict[str, Tensor]:
        return read_safetensors(self.folder / "state", "teacher")

    def adapter(self) -> dict[str, Tensor]:
        return read_safetensors(self.folder / "state", "adapter")

    def random_state(self) -> Tensor:
        return read_safetensors(self.folder / "state", "random")[_RANDOM]


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, run_folder: Path, save_model: SaveModel) -> None:
        """`save_model(folder, weights)` must write weights, configuration and tokenizer."""
        self._run_folder = run_folder
        self.folder = run_folder / "checkpoints"
        self._save_model = save_model

    def path(self, step: int) -> Path:
        return checkpoint_folder(self._run_folder, step)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending, including damaged ones."""
        return checkpoint_steps(self._run_folder)

    def clear(self, *names: str) -> None:
        """Delete unfinished checkpoints of earlier programs. Only the run's single writer may call this."""
        for left in (path for name in names for path in self.folder.glob(name)):
            shutil.rmtree(left, ignore_errors=True)

    def write(self, snapshot: Snapshot) -> tuple[Path, int]:
        """Make a checkpoint durable. Returns its folder and size in bytes."""
        target = self.path(snapshot.state.step)
        temporary = self.folder / f".writing-{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        model, state = temporary / "hf", temporary / "state"
        model.mkdir(parents=True)
        state.mkdir()
        self._save_model(model, snapshot.weights)
        if snapshot.optimizer:
            write_safetensors(state, "optimizer", snapshot.optimizer)
        if snapshot.teacher:
            write_safetensors(state, "teacher", snapshot.teacher)
        if snapshot.adapter:
            write_safetensors(state, "adapter", snapshot.adapter)
        write_safetensors(state, "random", {_RANDOM: snapshot.random_state})
        (state / "state.json").write_bytes(msgspec.json.encode(snapshot.state))
        manifest = _seal(temporary)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
        sync_names(self._run_folder)
        return target, manifest.bytes

    def load_newest(self, on_torn: Callable[[str], None]) -> Loaded | None:
        """The newest intact checkpoint, or None if there are no checkpoints. Calls `on_torn` for each damaged one, and
        renames those once an intact one is found, so that they do not count towards `checkpoint.keep_last`.

        Raises:
            CorruptCheckpointError: there are checkpoints, but none is intact.
        """
        torn: list[Path] = []
        fault = None
        for step in reversed(self.steps()):
            try:
                loaded = load(self.path(step))
            except CorruptCheckpointError as error:
                torn.append(self.path(step))
                fault = error
                on_torn(error.message)
                continue
            for path in torn:
                _set_aside(path)
            return loaded
        if fault is not None:
            raise CorruptCheckpointError(
                f"None of the checkpoints in {self.folder} is intact. The last one checked: {fault.message}",
                remedy="Restore one from a backup, or delete the folder to restart the run from step 0.",
            )
        return None

    def collect(self, keep_last: int, keep_best: int, accuracies: Mapping[int, float]) -> None:
        """Delete all but the newest `keep_last` and the `keep_best` with the highest accuracy, by step."""
        steps = self.steps()
        best = sorted((step for step in steps if step in accuracies), key=lambda step: (-accuracies[step], -step))
        kept = {*steps[-keep_last:], *best[:keep_best]}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)
        self.clear(".writing-*", ".torn-*")


def _set_aside(path: Path) -> None:
    """Rename a damaged checkpoint so that it does not count as one, and keep it until the next one is written."""
    aside = path.with_name(f".torn-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)


def load(folder: Path) -> Loaded:
    """Verify one checkpoint. Raises `CorruptCheckpointError` for the first fault found."""
    manifest = read_checkpoint_manifest(folder)
    try:
        for entry in manifest.files:
            path = folder / entry.name
            if path.stat().st_size != entry.bytes or sha256_of(path) != entry.sha256:
                raise CorruptCheckpointError(f"Checkpoint file {path} does not match its checksum.")
    except OSError as error:
        raise CorruptCheckpointError(f"Checkpoint {folder} is incomplete: {error}.") from error
    return read(folder)


def read(folder: Path) -> Loaded:
    """Read a checkpoint that another rank has verified. Raises `CorruptCheckpointError` if its state is unreadable."""
    try:
        state = msgspec.json.decode((folder / "state" / "state.json").read_bytes(), type=State)
    except (OSError, msgspec.DecodeError) as error:
        raise CorruptCheckpointError(f"Checkpoint {folder} is incomplete: {error}.") from error
    if state.format != FORMAT:
        raise CorruptCheckpointError(f"Checkpoint {folder} has format {state.format}; this learner reads {FORMAT}.")
    return Loaded(folder, state)


def _seal(folder: Path) -> CheckpointManifest:
    """Sync every file and folder, then write the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = []
    for path in files:
        sync(path)
        entries.append(FileEntry(str(path.relative_to(folder)), path.stat().st_size, sha256_of(path)))
    for path in _folders(files):
        sync(path)
    manifest = CheckpointManifest(entries)
    write_atomically(folder / MANIFEST, msgspec.json.encode(manifest))
    return manifest


def _folders(files: Iterable[Path]) -> set[Path]:
    return {path.parent for path in files}

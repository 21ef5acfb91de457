"""Transport `store`: reads the version's files while the model loads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from services.rollout.weights.lora import holds_adapter, merged_tensors
from services.rollout.weights.receive.base import Receiver, Update
from services.runtime.weights.store import CorruptWeightsError, verify


class StoreReceiver(Receiver):
    """Verifies the folder, then reads it; an adapter is merged with the base model."""

    def receive(self, update: Update) -> Iterator[tuple[str, Tensor]]:
        folder = update.folder
        manifest = verify(folder, update.checksum, update.marks)
        if holds_adapter(folder):
            return merged_tensors(folder, self.worker.model, self.worker.dtype)
        files = [folder / entry.name for entry in manifest.files if entry.name.endswith(".safetensors")]
        if not files:
            raise CorruptWeightsError(f"Weight folder {folder} contains no safetensors file.")
        return tensors_of(files)


def tensors_of(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) pairs of safetensors files, in the order of the manifest."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


RECEIVER = StoreReceiver

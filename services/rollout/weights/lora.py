"""Merges a published LoRA adapter into the weights of the run's base model: W = W0 + (alpha / rank) * B @ A.

The merged tensors are loaded like whole published weights. Sampling therefore costs the same as without LoRA, requests
in flight handle an update as usual, and vLLM's own LoRA support (slots, a limit on the rank, an adapter name in each
request) is not needed. Only the adapter is transferred; each server reads W0 from the base model's files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from services.runtime.weights.store import CorruptWeightsError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Delta:
    """The change of one layer's weight."""

    down: Tensor
    """A, [rank, in]."""
    up: Tensor
    """B, [out, rank]."""
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def added_to(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight as the learner has it, [out, in]: W0 in the run's dtype, the sum in float32, rounded once."""
        base = weight.to(dtype).float()
        return torch.addmm(base, self.up.float(), self.down.float(), alpha=self.scale).to(dtype)


def holds_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).exists()


def merged_tensors(folder: Path, model: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) pairs of the whole model, merged one by one while they are read.

    Everything is checked before the first pair, so a fault leaves the engine's weights intact.

    Args:
        folder: a verified version of the weight store that contains an adapter.
        model: folder or hub name of the base model, as vLLM has loaded it.
        dtype: the run's dtype.

    Raises:
        CorruptWeightsError: the adapter does not fit the base model.
    """
    return _merge(_base_files(model), checked_deltas(folder, model), dtype)


def write_merged(folder: Path, model: str, dtype: str, out: Path) -> Path:
    """Write the whole merged model as safetensors files to `out`, in memory first. Returns the base model's folder.

    Args:
        dtype: the run's, by its name in torch.

    Raises:
        CorruptWeightsError: as `merged_tensors`.
    """
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(dict(merged_tensors(folder, model, getattr(torch, dtype))), out)
    return _base_files(model)[0].parent


def checked_deltas(folder: Path, model: str) -> dict[str, Delta]:
    """An adapter's changes by name of the weight. Raises `CorruptWeightsError` if they do not fit the base model."""
    deltas = _read(folder)
    found = {name: shape for file in _base_files(model) for name, shape in _shapes(file) if name in deltas}
    for name, delta in deltas.items():
        if found.get(name) != delta.shape:
            raise CorruptWeightsError(
                f"The adapter in {folder} changes {name} by a matrix of shape {delta.shape}, but in {model} its shape "
                f"is {found.get(name)}."
            )
    return deltas


def _merge(files: list[Path], deltas: Mapping[str, Delta], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(name)
                delta = deltas.get(name)
                yield name, tensor if delta is None else delta.added_to(tensor, dtype)


def _read(folder: Path) -> dict[str, Delta]:
    """An adapter's changes by name of the weight."""
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_bytes())
    tensors = load_file(folder / WEIGHTS_FILE)
    scale = config["lora_alpha"] / config["r"]
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    try:
        return {
            layer.removeprefix(PREFIX) + ".weight": Delta(
                tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"], scale
            )
            for layer in layers
        }
    except KeyError as error:
        raise CorruptWeightsError(f"The adapter in {folder} lacks {error}.") from error


def _base_files(model: str) -> list[Path]:
    """The base model's safetensors files: those in its index, if it has one."""
    from huggingface_hub import snapshot_download

    folder = Path(model) if Path(model).is_dir() else Path(snapshot_download(model, local_files_only=True))
    if (folder / INDEX).exists():
        names = json.loads((folder / INDEX).read_bytes())["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CorruptWeightsError(f"The base model {model} has no safetensors files to merge the adapter into.")
    return files


def _shapes(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            yield name, tuple(opened.get_slice(name).get_shape())

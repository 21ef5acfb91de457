"""Loads model weights, copies them whole to rank 0, and reads and writes them as safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from services.contracts.model import ModelSection
from services.learner.model.forward import gathered
from services.learner.model.linear import use_onednn
from services.learner.model.quantized import loading_options, settle
from services.learner.model.tree_attention import share_prefixes
from services.runtime.inputs import trusts_remote_code
from services.runtime.tokenizer import unloadable

SHARD_BYTES = 4 * 1024**3
MIN_SHARD_BYTES = 32 * 2**20
MAX_SHARDS = 64
"""Weights are published in up to this many files, whose checksums are computed in parallel."""
GATHER_ELEMENTS = 500_000_000
"""Number of parameter elements gathered at once under ZeRO-3."""


def load_model(
    section: ModelSection,
    path: str,
    *,
    gradient_checkpointing: bool,
    allow_remote_code: bool,
    field: str = "model.path",
    quantize: bool = False,
) -> nn.Module:
    """The causal LM at `path` (a folder or hub name) in the run's dtype, ready for training.

    Args:
        field: the field of the run file that names it, for errors.
        quantize: keep the weights of linear layers in 4 bits (`services.learner.model.quantized`).

    Raises:
        ConfigurationError: the model cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    trusted = trusts_remote_code(section, allow_remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=without_dropout(AutoConfig.from_pretrained(path, trust_remote_code=trusted)),
            dtype=getattr(torch, section.dtype),
            attn_implementation="sdpa",
            trust_remote_code=trusted,
            **(loading_options(section) if quantize else {}),
        )
    except (OSError, ValueError) as error:
        raise unloadable("model", path, error, field) from error
    model.config.use_cache = False
    if quantize:
        settle(model)
    share_prefixes(model)
    use_onednn(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    whole: nn.Module = model
    return whole


def without_dropout(config: Any) -> Any:
    """Set every dropout rate in the configuration to 0. Rollouts are sampled without dropout, and the trained policy
    must be the sampled one."""
    for name, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)
    return config


@torch.no_grad()
def whole_weights(module: nn.Module, rank: int, *, trained_only: bool = False) -> dict[str, Tensor]:
    """Copies of all weights in CPU memory by Hugging Face name, tied ones once; empty on ranks other than 0.

    Saved buffers, such as the routing bias of some mixtures of experts, count as weights that are not trained.
    Collective under ZeRO-3.
    """
    weights: dict[str, Tensor] = {}
    if rank == 0 and not trained_only:
        saved = module.state_dict(keep_vars=True)
        buffers = {name: value for name, value in saved.items() if not isinstance(value, nn.Parameter)}
        weights |= {name: buffer.to("cpu", copy=True).contiguous() for name, buffer in buffers.items()}
    for names, parameters in _runs_of_parameters(module, trained_only):
        with gathered(parameters):
            if rank == 0:
                for name, parameter in zip(names, parameters, strict=True):
                    weights[name] = parameter.detach().to("cpu", copy=True).contiguous()
    return weights


def _runs_of_parameters(module: nn.Module, trained_only: bool) -> list[tuple[list[str], list[nn.Parameter]]]:
    runs: list[tuple[list[str], list[nn.Parameter]]] = [([], [])]
    elements = 0
    for name, parameter in module.named_parameters():
        if trained_only and not parameter.requires_grad:
            continue
        count = int(getattr(parameter, "ds_numel", parameter.numel()))
        if elements and elements + count > GATHER_ELEMENTS:
            runs.append(([], []))
            elements = 0
        runs[-1][0].append(name)
        runs[-1][1].append(parameter)
        elements += count
    return runs


def write_safetensors(folder: Path, stem: str, tensors: Mapping[str, Tensor], shard_bytes: int | None = None) -> None:
    """Write tensors as `<stem>.safetensors`, or as numbered shards with an index if they exceed `shard_bytes`
    (`SHARD_BYTES` if None)."""
    limit = SHARD_BYTES if shard_bytes is None else shard_bytes
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def write_shards(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights as enough files for all cores to compute checksums at the same time."""
    num_bytes = sum(tensor.nbytes for tensor in weights.values())
    write_safetensors(folder, "model", weights, max(MIN_SHARD_BYTES, num_bytes // MAX_SHARDS))


def read_safetensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """Read what `write_safetensors` wrote."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob(f"{stem}*.safetensors")):
        tensors |= load_file(path)
    return tensors

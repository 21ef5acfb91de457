"""LoRA (arXiv 2106.09685): the run trains low-rank matrices added to the frozen linear layers of `model.path`.

    y = W0 x + (alpha / rank) * B (A x)        W0 [out, in] frozen, A [rank, in] initially random, B [out, rank] zero

PEFT replaces the layers inside the Hugging Face model, so other code sees the same model. Published weights and
checkpoints contain only the adapter, in PEFT's format:

    adapter_model.safetensors    base_model.model.<layer>.lora_A.weight, ...lora_B.weight
    adapter_config.json          rank, alpha, layers, base model
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from services.contracts.errors import ConfigurationError
from services.contracts.model import ModelSection

NAME = "default"
"""PEFT's name for the adapter; part of parameter names in the model, but not in files."""
PREFIX = "base_model.model."
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def inject(model: nn.Module, section: ModelSection) -> nn.Module:
    """Add an adapter to the model and freeze everything else. torch's generator initializes the adapter.

    Raises:
        ConfigurationError: `model.lora.target_modules` names no linear layer of this model, or its LM head.
    """
    from peft import LoraConfig, inject_adapter_in_model

    lora = section.lora
    assert lora is not None
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=section.path,
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
    )
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    try:
        whole: nn.Module = inject_adapter_in_model(config, model, NAME)
    except ValueError as error:
        raise _not_adaptable(f"{str(error).splitlines()[0]}") from error
    if whole.get_output_embeddings() is not head:  # type: ignore[operator]
        raise _not_adaptable("The LM head is one of them.")
    return whole


def _not_adaptable(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"LoRA cannot be applied to these layers: {reason}",
        remedy="Name linear layers in the model's blocks, or use all-linear.",
        field="model.lora.target_modules",
    )


def file_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained weights by parameter name, renamed as in PEFT's files."""
    return {_file_name(name): value for name, value in weights.items()}


def _file_name(parameter: str) -> str:
    return PREFIX + parameter.replace(f".{NAME}.weight", ".weight")


def write(folder: Path, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Write an adapter in PEFT's format. The same weights give the same bytes.

    Args:
        weights: as `file_names` returns them.
        model: the model that `inject` returned.
    """
    save_file(dict(weights), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config: Any = model.peft_config[NAME]  # type: ignore[index]
    values = config.to_dict() | {"inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    (folder / CONFIG_FILE).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")


def load(model: nn.Module, folder: Path) -> None:
    """Load a saved adapter into the model that `inject` returned.

    Raises:
        ConfigurationError: the folder contains whole weights, or an adapter for other layers or of another rank.
    """
    if not (folder / WEIGHTS_FILE).exists():
        raise _other_training("the checkpoint contains whole weights")
    restore(model, load_file(folder / WEIGHTS_FILE))


@torch.no_grad()
def restore(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load an adapter's tensors, by the names of `file_names`. Raises `ConfigurationError` as `load`."""
    parameters = {
        _file_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if {name: value.shape for name, value in tensors.items()} != {
        name: value.shape for name, value in parameters.items()
    }:
        raise _other_training("the checkpoint's adapter is for other layers or has another rank")
    for name, value in tensors.items():
        parameters[name].copy_(value)


def refuse_adapter(folder: Path, *, quantized_base: bool = False) -> None:
    """Raise `ConfigurationError` if a run without LoRA would continue from an adapter."""
    if quantized_base or (folder / CONFIG_FILE).exists():
        raise _other_training("the checkpoint contains an adapter")


def _other_training(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"The run cannot continue with this model.lora: {what}.",
        remedy="Set model.lora as it was when the checkpoint was written, or start a new run.",
        field="model.lora",
    )

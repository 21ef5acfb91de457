"""A base model in 4 bits under a LoRA adapter (QLoRA, arXiv 2305.14314): `model.lora.load_in_4bit`.

transformers quantizes the linear layers while it loads the model, on the CPU, so that every machine gets the same bits:
NF4 in blocks of 64, with scales that are quantized as well. Passes multiply with the values that dequantization
returns, so those are the policy's weights. `merged_weights` publishes them with the adapter added, whole: a server that
merged the adapter with the original weights would sample from another policy than the one that is trained.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from services.contracts.errors import ConfigurationError
from services.contracts.model import ModelSection
from services.learner.model.lora import NAME

FIELD = "model.lora.load_in_4bit"
BASE = ".base_layer."
"""What PEFT adds to the names of a layer's own parameters."""


def check_installed(section: ModelSection) -> None:
    """Raise `ConfigurationError` if the run needs bitsandbytes and it is not installed."""
    if section.is_quantized and find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            f"{FIELD} is true, but bitsandbytes is not installed on the learner's machine.",
            remedy="Install it with pip install 'turnout[quantized]', or remove the setting.",
            field=FIELD,
        )


def loading_options(section: ModelSection) -> dict[str, Any]:
    """What `from_pretrained` needs to quantize a model while it loads it. Raises `ConfigurationError` as
    `check_installed`, since only one of several machines may lack it."""
    check_installed(section)
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, section.dtype)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def settle(model: Any) -> None:
    """Make a model that transformers has quantized one whose weights stay as they are, and that is saved whole."""
    del model.config.quantization_config
    for module in model.modules():
        # On CPUs with bfloat16, bitsandbytes would repack weights in passes without gradients, and round their scales.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def digest_of_base(model: nn.Module) -> str:
    """SHA-256 of a quantized model's weights and scales, by name. Call this before the model gets an adapter."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_base(path: str, digest: str, known: str | None) -> None:
    """Raise `ConfigurationError` if the base model is not the one that a checkpoint was trained with.

    Args:
        path: `model.path`.
        digest: of the model there, quantized now.
        known: in the checkpoint; None if it has none.
    """
    if known is None:
        raise ConfigurationError(
            f"The run cannot continue with {FIELD}: the checkpoint's base model was not in 4 bits.",
            remedy="Use the setting with which the checkpoint was made, or start a new run.",
            field=FIELD,
        )
    if digest != known:
        raise ConfigurationError(
            f"model.path is {path}, but the weights there, in 4 bits, are not those of the checkpoint: SHA-256 "
            f"{digest[:12]}, was {known[:12]}.",
            remedy="Restore the model, and the version of bitsandbytes with which the run began.",
            field="model.path",
        )


@torch.no_grad()
def merged_weights(module: nn.Module, rank: int) -> dict[str, Tensor]:
    """All weights of the policy in the run's dtype, in CPU memory by Hugging Face name; empty on ranks other than 0.

    Base weights are dequantized, the adapter is added in float32, and the sum is rounded once.
    """
    if rank != 0:
        return {}
    weights: dict[str, Tensor] = {name: _copy(buffer) for name, buffer in _saved_buffers(module)}
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            continue
        whole = _dequantized(parameter)
        if name.endswith(f"{BASE}weight"):
            whole = _with_adapter(whole, module.get_submodule(name.removesuffix(f"{BASE}weight")))
        weights[name.replace(BASE, ".")] = _copy(whole)
    return weights


def _saved_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    saved = module.state_dict().keys()
    return [(name, buffer) for name, buffer in module.named_buffers() if name in saved]


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _dequantized(parameter: nn.Parameter) -> Tensor:
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.data
    from bitsandbytes.functional import dequantize_4bit

    whole: Tensor = dequantize_4bit(parameter.data, state)
    return whole


def _with_adapter(base: Tensor, layer: Any) -> Tensor:
    """[out, in] + scale * [out, rank] @ [rank, in], as rollout servers merge adapters."""
    up, down = layer.lora_B[NAME].weight, layer.lora_A[NAME].weight
    return torch.addmm(base.float(), up.float(), down.float(), alpha=layer.scaling[NAME]).to(base.dtype)

"""Models of random weights in Qwen3's shapes, in memory or as a folder that a run can start from."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.learner.model.tree_attention import share_prefixes

SHAPES = {
    "4B": (36, 2560, 9728, 32, 8, 128, 151936),
    "1.7B": (28, 2048, 6144, 16, 8, 128, 151936),
    "0.6B": (28, 1024, 3072, 16, 8, 128, 151936),
    "25M": (8, 512, 1536, 8, 4, 64, 512),
    "small": (4, 64, 192, 4, 2, 16, 512),
    "tiny": (2, 96, 256, 3, 1, 32, 512),
}
"""Layers, hidden size, MLP size, query heads, key heads, head size, vocabulary."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
BYTES_PER_PARAMETER = 32
"""What a part needs at most, with the passes' memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and with what the parts run."""

    device: torch.device
    shape: str
    dtype: str
    response: int


def choose(*, cpu: bool) -> Place:
    """The GPU with the largest model that fits; the CPU with a small one."""
    if cpu:
        return Place(torch.device("cpu"), "small", "bfloat16", 24)
    free = torch.cuda.mem_get_info()[0]
    sizes = {"4B": 4.0e9, "1.7B": 1.7e9, "0.6B": 0.6e9}
    shape = next((name for name, size in sizes.items() if size * BYTES_PER_PARAMETER < free), "small")
    return Place(torch.device("cuda", 0), shape, "bfloat16", 512)


def model_of(place: Place, *, share: bool = True) -> Any:
    """Random weights, the same on each device."""
    model = _model(SHAPES[place.shape]).to(getattr(torch, place.dtype))
    model.config.use_cache = False
    if share:
        assert share_prefixes(model), "the model cannot share prefixes here"
    return model.to(place.device).train()


def write_model(folder: Path, tokenizer: Path, shape: str, dtype: str) -> None:
    """Write random weights with the tokenizer of another model folder, whose vocabulary they get: an engine cannot
    decode tokens that its tokenizer does not have."""
    folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder)
    source = json.loads((tokenizer / "config.json").read_text())
    tokens = {name: source[name] for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    model = _model((*SHAPES[shape][:-1], source["vocab_size"]), **tokens).to(getattr(torch, dtype))
    model.save_pretrained(folder)


def _model(shape: tuple[int, ...], **values: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    layers, hidden, middle, heads, keys, size, vocabulary = shape
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=middle,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=size,
        tie_word_embeddings=True,
        **values,
    )
    return Qwen3ForCausalLM(config)

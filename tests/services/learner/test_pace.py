"""Operations of a forward pass by formula, compared with what torch counts for Qwen3 on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen3Config

from services.contracts.pace import forward_flops
from services.contracts.sizing import shape_of

SHAPES = {
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    "qwen3-8b": {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
}
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}


@pytest.mark.parametrize("name", SHAPES)
def test_operations_are_counted_as_torch_counts_them(name: str) -> None:
    config = Qwen3Config(num_hidden_layers=2, **SHAPES[name], **HEADS)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        tokens = torch.zeros(4, 1000, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter:
        model(tokens, attention_mask={"full_attention": None}, use_cache=False)
    # torch counts attention to all tokens of a sequence, although later ones are masked.
    expected = forward_flops(shape_of(config.to_dict(), name), 4000, attended=1000)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)

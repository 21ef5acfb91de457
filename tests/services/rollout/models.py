"""Tiny random models of the run's class: the policy, an adapter for it, and their tokenizer."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

TEMPLATE = (
    "{%- if tools -%}<tool_call> {% endif -%}"
    "{%- for message in messages -%}<{{ message['role'] }}> {{ message['content'] }} {% endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)
TOOL_CALL = '<tool_call>{"name":"add","arguments":{"x":1}}</tool_call>'
"""One token of the vocabulary, the last, because a random model writes none in parts."""


def make_model(seed: int, intermediate_size: int = 96) -> Qwen3ForCausalLM:
    """A random policy that is far from uniform, with tied embeddings and grouped key-value heads."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.12,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config).eval()


def make_adapted(seed: int) -> PeftModel:
    """The deployment's base model with a random LoRA adapter that changes it considerably."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(make_model(0), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<end>", "<unk>", "<system>", "<user>", "<assistant>"]
    words += [f"w{index}" for index in range(199 - len(words))] + [TOOL_CALL]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", model_max_length=1024
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer

"""Rejects models that a run cannot train, by their configuration: the API reads config.json, the learner the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.contracts.errors import ConfigurationError
from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.run_config import RunConfig

MODELS_WITH_TABLE = frozenset(
    {"biogpt", "codegen", "ctrl", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "openai-gpt", "opt"}
)
"""`model_type` in config.json of language models that have a table of positions, learned or precomputed. Other models
compute positions during a pass."""
HEADING_TOKENS = 128
"""An upper bound for the headings of the teacher's prompt, which have fewer characters."""


LOGIT_CHANGES = (
    ("final_logit_softcapping", (None,)),
    ("logits_soft_cap", (None,)),
    ("output_logit_soft_cap", (None,)),
    ("logit_scale", (None, 1.0)),
    ("logits_scaling", (None, 1.0)),
    ("lm_head_multiplier", (None, 1.0)),
)
"""Settings with which models change their logits after the LM head, and the values that have no effect."""


def check_logits(setting: Callable[[str], Any]) -> None:
    """Reject a model whose logits are not its LM head's plain output.

    Args:
        setting: returns a setting of the model's configuration by name, None if it is absent.

    Raises:
        ConfigurationError: names the setting that changes the logits.
    """
    for name, neutral in LOGIT_CHANGES:
        value = setting(name)
        if value not in neutral:
            raise ConfigurationError(
                f"The model changes its logits after the LM head ({name} = {value}), which is not supported.",
                remedy="Use a model whose logits are the output of its LM head.",
                field="model.path",
            )


def teacher_tokens(config: RunConfig) -> int | None:
    """Length in tokens of the longest sequence of question, solution and response that the self-teacher reads, without
    headings and feedback; None for runs without a self-teacher."""
    rollout = config.rollout
    has_teacher = OBJECTIVES[config.objective.name].has_teacher
    return rollout.max_prompt_tokens + 2 * rollout.max_response_tokens if has_teacher else None


def check_split(size: int, path: str, setting: Callable[[str], Any]) -> None:
    """Check that the GPUs of a rollout server can share the model's layers as vLLM divides them.

    Args:
        size: `rollout.tensor_parallel_size`.
        path: `model.path`.
        setting: returns a setting of the model's configuration by name, None if it is absent.

    Raises:
        ConfigurationError: names the setting of the model that cannot be divided, and the sizes that can be used.
    """
    found = [(name, setting(name)) for name in ("num_attention_heads", "intermediate_size", "num_key_value_heads")]
    whole = {name: value for name, value in found if isinstance(value, int) and value > 0}
    undivided = [name for name in whole if not divides(size, name, whole[name])]
    if undivided:
        can = [n for n in range(1, 65) if all(divides(n, name, value) for name, value in whole.items())]
        raise ConfigurationError(
            f"rollout.tensor_parallel_size is {size}, but the model {path} (model.path) has "
            f"{undivided[0]} = {whole[undivided[0]]}, which {size} GPUs cannot share.",
            remedy=f"Set rollout.tensor_parallel_size to one of {', '.join(map(str, can))}.",
            field="rollout.tensor_parallel_size",
        )


def divides(size: int, name: str, value: int) -> bool:
    """Whether vLLM can divide so many by `size`. It copies key-value heads to several GPUs if they are too few."""
    return value % size == 0 or (name == "num_key_value_heads" and size % value == 0)


def check_tokens(path: str, num_rows: int, highest: tuple[int, str]) -> None:
    """Check that the embedding has a row for every token of the tokenizer.

    Args:
        path: model that the tokenizer belongs to.
        num_rows: rows of the embedding.
        highest: the tokenizer's largest id, and its token.

    Raises:
        ConfigurationError: the token has no row.
    """
    number, token = highest
    if number >= num_rows:
        raise ConfigurationError(
            f"model.path is {path}, whose tokenizer has token {token[:60]!r} with id {number}, but the model's "
            f"embedding has only {num_rows} rows (vocab_size).",
            remedy="Resize the embedding (resize_token_embeddings), or use the model's original tokenizer.",
            field="model.path",
        )


def check_table(config: RunConfig, num_positions: int) -> None:
    """Check that the run's sequences fit the model's table of positions.

    Raises:
        ConfigurationError: a sequence of the run may be longer than the table.
    """
    rollout = config.rollout
    teacher = teacher_tokens(config)
    if config.max_model_tokens > num_positions:
        reads, num_tokens = "prompt and response may have", config.max_model_tokens
    elif teacher is not None and teacher + HEADING_TOKENS > num_positions:
        reads, num_tokens = "the self-teacher may read", teacher + HEADING_TOKENS
    else:
        return
    raise ConfigurationError(
        f"rollout.max_response_tokens is {rollout.max_response_tokens} and rollout.max_prompt_tokens is "
        f"{rollout.max_prompt_tokens}, so {reads} up to {num_tokens} tokens, but the model {config.model.path} "
        f"(model.path) has a table of only {num_positions} positions.",
        remedy="Lower one of the two, or use a model with rotary positions.",
        field="rollout.max_response_tokens",
    )

"""Models that a run cannot train, as far as their configuration says: by the API from config.json, by the learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.contracts.errors import ConfigurationError
from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.run_config import RunConfig

MODELS_WITH_TABLE = frozenset(
    {"biogpt", "codegen", "ctrl", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "openai-gpt", "opt"}
)
"""`model_type` in config.json of language models that look positions up, learned or computed beforehand. The others
compute them as they go."""
HEADING_TOKENS = 128
"""More than the headings of the teacher's prompt have characters."""


LOGIT_CHANGES = (
    ("final_logit_softcapping", (None,)),
    ("logits_soft_cap", (None,)),
    ("output_logit_soft_cap", (None,)),
    ("logit_scale", (None, 1.0)),
    ("logits_scaling", (None, 1.0)),
    ("lm_head_multiplier", (None, 1.0)),
)
"""Settings by which models change their logits after the LM head, with the values that change nothing."""


def check_logits(setting: Callable[[str], Any]) -> None:
    """`setting` gives a setting of the model's configuration by name, None for one that it lacks.

    Raises:
        ConfigurationError: the model's logits are more than the head's plain output.
    """
    for name, neutral in LOGIT_CHANGES:
        value = setting(name)
        if value not in neutral:
            raise ConfigurationError(
                f"The model changes its logits after the LM head ({name} = {value}), which the learner does not do.",
                remedy="Use a model without it.",
                field="model.path",
            )


def teacher_tokens(config: RunConfig) -> int | None:
    """Longest sequence of question, solution and response that the self-teacher reads, in tokens, without headings and
    feedback; None for runs without a self-teacher."""
    rollout = config.rollout
    has_teacher = OBJECTIVES[config.objective.name].has_teacher
    return rollout.max_prompt_tokens + 2 * rollout.max_response_tokens if has_teacher else None


def check_tokens(path: str, num_rows: int, highest: tuple[int, str]) -> None:
    """`highest`: the largest id of the tokenizer of model `path` and its token; `num_rows`: rows of the embedding.

    Raises:
        ConfigurationError: the token has no row.
    """
    number, token = highest
    if number >= num_rows:
        raise ConfigurationError(
            f"model.path is {path}, whose tokenizer has token {token[:60]!r} with id {number}, but the model's "
            f"embedding has only {num_rows} rows (vocab_size).",
            remedy="Resize the embedding (resize_token_embeddings), or use the tokenizer that the model came with.",
            field="model.path",
        )


def check_table(config: RunConfig, num_positions: int) -> None:
    """For a model with a table of positions.

    Raises:
        ConfigurationError: a sequence of the run may be longer than the table.
    """
    rollout = config.rollout
    teacher = teacher_tokens(config)
    if config.max_model_tokens > num_positions:
        reads, num_tokens = "prompt and response are", config.max_model_tokens
    elif teacher is not None and teacher + HEADING_TOKENS > num_positions:
        reads, num_tokens = "the self-teacher reads prompt, solution and response:", teacher + HEADING_TOKENS
    else:
        return
    raise ConfigurationError(
        f"rollout.max_response_tokens is {rollout.max_response_tokens} and rollout.max_prompt_tokens "
        f"{rollout.max_prompt_tokens}, with which {reads} up to {num_tokens} tokens, but the model of model.path "
        f"{config.model.path} has a table of only {num_positions} positions.",
        remedy="Lower one of them, or use a model with rotary positions.",
        field="rollout.max_response_tokens",
    )

"""Rejects models that a run cannot train, by their configuration: the API reads config.json, the learner the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from services.contracts.errors import ConfigurationError
from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.objectives.settings import QUESTION
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


def check_logits(setting: Callable[[str], Any], field: str = "model.path") -> None:
    """Reject a model whose logits are not its LM head's plain output.

    Args:
        setting: returns a setting of the model's configuration by name, None if it is absent.
        field: the field of the run file that names the model.

    Raises:
        ConfigurationError: names the setting that changes the logits.
    """
    for name, neutral in LOGIT_CHANGES:
        value = setting(name)
        if value not in neutral:
            raise ConfigurationError(
                f"The model changes its logits after the LM head ({name} = {value}), which is not supported.",
                remedy="Use a model whose logits are the output of its LM head.",
                field=field,
            )


def teacher_tokens(config: RunConfig) -> int | None:
    """Length in tokens of the longest sequence of question, solutions and response that the teacher reads, without
    headings and feedback; None for runs without a teacher."""
    rollout, objective = config.rollout, config.objective
    if not OBJECTIVES[objective.name].has_teacher:
        return None
    prompts = 1 + objective.teacher_closing.count(QUESTION)
    responses = 1 if objective.demonstration == "none" else 1 + objective.demonstrations
    return prompts * rollout.max_prompt_tokens + responses * rollout.max_response_tokens


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


def check_teacher_vocabulary(
    path: str, num_rows: int | None, student_rows: int | None, theirs: Mapping[str, int], ours: Mapping[str, int]
) -> None:
    """Check that a fixed teacher gives every token of the policy a probability: it has the same ids, and its embedding
    at least as many rows. More rows, which are padding, are left out.

    Args:
        path: `objective.teacher_path`.
        num_rows: rows of the teacher's embedding; None: unknown, as for the next.
        student_rows: rows of the policy's.
        theirs: ids of the teacher's tokenizer by token; empty: unknown.
        ours: ids of the policy's.

    Raises:
        ConfigurationError: names the token, or the number of rows.
    """
    fault = None
    other = next((token for token, number in ours.items() if theirs.get(token, -1) != number), None) if theirs else None
    if other is not None:
        has = f"id {theirs[other]}" if other in theirs else "no id"
        fault = f"whose tokenizer has {has} for token {other[:60]!r}, which has id {ours[other]} in the policy's"
    elif num_rows is not None and student_rows is not None and num_rows < student_rows:
        fault = f"whose embedding has {num_rows} rows (vocab_size), fewer than the policy's {student_rows}"
    if fault is not None:
        raise ConfigurationError(
            f"objective.teacher_path is {path}, {fault}.",
            remedy="Use a teacher with the policy's vocabulary, such as a larger model of the same family.",
            field="objective.teacher_path",
        )


def check_teacher_table(config: RunConfig, num_positions: int) -> None:
    """Check that what a fixed teacher may read fits its table of positions.

    Raises:
        ConfigurationError: it may be longer than the table.
    """
    reads = teacher_tokens(config)
    if reads is not None and reads + HEADING_TOKENS > num_positions:
        raise ConfigurationError(
            f"objective.teacher_path is {config.objective.teacher_path}, which has a table of only {num_positions} "
            f"positions, but may read up to {reads + HEADING_TOKENS} tokens.",
            remedy="Lower rollout.max_response_tokens or rollout.max_prompt_tokens, or use a teacher with rotary "
            "positions.",
            field="objective.teacher_path",
        )


def check_table(config: RunConfig, num_positions: int) -> None:
    """Check that the run's sequences fit the model's table of positions.

    Raises:
        ConfigurationError: a sequence of the run may be longer than the table.
    """
    rollout = config.rollout
    teacher = teacher_tokens(config) if config.objective.teacher_path is None else None
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

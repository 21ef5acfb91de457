"""Checks, before anything is sampled, that a run's model can be trained and saved."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from services.contracts.errors import ConfigurationError
from services.contracts.run_config import RunConfig
from services.contracts.trainable import (
    MODELS_WITH_TABLE,
    check_table,
    check_teacher_table,
    check_teacher_vocabulary,
    check_tokens,
)
from services.learner.model.forward import check_model, output_head, vocabulary_size
from services.runtime.tokenizer import load_vocabulary


def check_run(model: nn.Module, tokenizer: Any, config: RunConfig) -> None:
    """Reject a model that would fail later in the run.

    Raises:
        ConfigurationError: the model changes its logits, lacks tokens of its tokenizer, has a table of positions that
            is too short for the run's sequences, or cannot be saved.
    """
    check_model(model)
    check_head(model)
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    check_stops(config, vocabulary_size(model))
    check_tokens(config.model.path, vocabulary_size(model), (highest, token))
    if (limit := table_of_positions(model)) is not None:
        check_table(config, limit)
    with tempfile.TemporaryDirectory(prefix="turnout-model-") as folder:
        try:
            write_files(Path(folder), model, tokenizer)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"transformers cannot save the configuration of model.path {config.model.path}, so no checkpoint could "
                f"be written: {str(error).splitlines()[0]}.",
                remedy="Correct config.json or tokenizer_config.json in the model's folder.",
                field="model.path",
            ) from error


def check_teacher(teacher: nn.Module, student: nn.Module, tokenizer: Any, config: RunConfig) -> None:
    """Reject a fixed teacher that could not re-score the policy's responses.

    Args:
        tokenizer: the policy's.

    Raises:
        ConfigurationError: it changes its logits, has another vocabulary, or too short a table of positions.
    """
    path, field = config.objective.teacher_path, "objective.teacher_path"
    assert path is not None
    check_model(teacher, field)
    check_head(teacher, field)
    rows = vocabulary_size(teacher), vocabulary_size(student)
    check_teacher_vocabulary(path, *rows, load_vocabulary(path, field), tokenizer.get_vocab())
    if (limit := table_of_positions(teacher)) is not None:
        check_teacher_table(config, limit)


def check_stops(config: RunConfig, vocabulary: int) -> None:
    """Raise `ConfigurationError` for a stop token that the model cannot sample."""
    for token in config.rollout.stop_token_ids:
        if token >= vocabulary:
            raise ConfigurationError(
                f"rollout.stop_token_ids has {token}, but the model's vocabulary has {vocabulary} tokens.",
                remedy="Look the token up in the model's tokenizer.json, or use rollout.stop.",
                field="rollout.stop_token_ids",
            )


@torch.no_grad()
def check_head(model: nn.Module, field: str = "model.path") -> None:
    """Check that the logits of a short pass equal the head's plain output, which is all that the learner computes.
    Skipped under ZeRO-3, where a pass is collective. `field` of the run file names the model.

    Raises:
        ConfigurationError: the model changes or truncates its logits after the head.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return
    plain: list[torch.Tensor] = []
    hook = output_head(model).register_forward_hook(lambda _module, _inputs, output: plain.append(output.clone()))
    device = next(model.parameters()).device
    try:
        logits = model(input_ids=torch.zeros((1, 2), dtype=torch.int64, device=device), use_cache=False).logits
    finally:
        hook.remove()
    same = len(plain) == 1 and plain[0].shape == logits.shape
    if not same or not torch.allclose(plain[0].to(logits.dtype), logits, rtol=0.0, atol=0.0, equal_nan=True):
        raise ConfigurationError(
            "The model changes its logits after the LM head, which is not supported.",
            remedy="Use a model whose logits are the output of its LM head.",
            field=field,
        )


def num_positions(model: nn.Module) -> int | None:
    """Length in tokens of the longest sequence that the model is made for; None if its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr,operator]


def table_of_positions(model: nn.Module) -> int | None:
    """Length of the model's table of positions; None if the model computes them."""
    limit = num_positions(model)
    if limit is None:
        return None
    if model.config.get_text_config().model_type in MODELS_WITH_TABLE:  # type: ignore[union-attr,operator]
        return limit
    words = model.get_input_embeddings()  # type: ignore[operator]
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not words]
    # Some tables have two extra rows for padding.
    return limit if any(table.num_embeddings in (limit, limit + 2) for table in tables) else None


def write_files(folder: Path, model: nn.Module, tokenizer: Any) -> None:
    """Write tokenizer, configuration and generation settings in Hugging Face format, as they were read."""
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)  # type: ignore[union-attr,operator]
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        # Not `save_pretrained`, which refuses settings that it could load (a temperature without do_sample).
        generation.to_json_file(folder / "generation_config.json", use_diff=True, keys_to_pop=["compile_config"])

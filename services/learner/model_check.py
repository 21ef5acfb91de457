"""Whether a run's model can be trained and written, found out before anything is sampled."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from services.contracts.errors import ConfigurationError
from services.contracts.run_config import RunConfig
from services.contracts.trainable import MODELS_WITH_TABLE, check_table, check_tokens
from services.learner.passes import check_model, vocabulary_size


def check_run(model: nn.Module, tokenizer: Any, config: RunConfig) -> None:
    """Refuse a model that would end the run later.

    Raises:
        ConfigurationError: it changes its logits, its tokenizer has tokens that it lacks, sequences of the run may
            exceed its table of positions, or its files cannot be written.
    """
    check_model(model)
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    check_tokens(config.model.path, vocabulary_size(model), (highest, token))
    if (limit := table_of_positions(model)) is not None:
        check_table(config, limit)
    with tempfile.TemporaryDirectory(prefix="turnout-model-") as folder:
        try:
            write_files(Path(folder), model, tokenizer)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"transformers cannot write the configuration of model.path {config.model.path} again, so there would "
                f"be no checkpoint: {str(error).splitlines()[0]}.",
                remedy="Correct config.json or tokenizer_config.json in the model's folder.",
                field="model.path",
            ) from error


def num_positions(model: nn.Module) -> int | None:
    """Tokens of the longest sequence that the model was made for, where it says."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr,operator]


def table_of_positions(model: nn.Module) -> int | None:
    """Length of the model's table of positions; None where it computes them."""
    limit = num_positions(model)
    if limit is None:
        return None
    if model.config.get_text_config().model_type in MODELS_WITH_TABLE:  # type: ignore[union-attr,operator]
        return limit
    words = model.get_input_embeddings()  # type: ignore[operator]
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not words]
    # Some tables have two rows more, for padding.
    return limit if any(table.num_embeddings in (limit, limit + 2) for table in tables) else None


def write_files(folder: Path, model: nn.Module, tokenizer: Any) -> None:
    """Tokenizer, configuration and generation settings in Hugging Face format, as they were read."""
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)  # type: ignore[union-attr,operator]
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        # Not `save_pretrained`, which refuses settings that it has read (a temperature without do_sample).
        generation.to_json_file(folder / "generation_config.json", use_diff=True, keys_to_pop=["compile_config"])

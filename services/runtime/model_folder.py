"""Checks a model's folder without the libraries that load models.

It rejects only what certainly fails. The learner checks the loaded model again, and models with hub names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from services.contracts.errors import ConfigurationError
from services.contracts.run_config import RunConfig
from services.contracts.trainable import (
    MODELS_WITH_TABLE,
    check_logits,
    check_split,
    check_table,
    check_teacher_table,
    check_teacher_vocabulary,
    check_tokens,
)

MAX_BYTES = 256 * 2**20
T = TypeVar("T")


class _Token(msgspec.Struct):
    id: int
    content: str = ""


class _Vocabulary(msgspec.Struct):
    vocab: dict[str, int] | list[msgspec.Raw] = {}
    """The vocabulary by token, or in the order of ids."""


class _Tokenizer(msgspec.Struct):
    """tokenizer.json."""

    model: _Vocabulary = msgspec.field(default_factory=_Vocabulary)
    added_tokens: list[_Token] = []


class _TokenizerConfig(msgspec.Struct):
    """tokenizer_config.json."""

    chat_template: Any = None
    added_tokens_decoder: dict[str, Any] = {}


def check_model_folder(folder: Path, config: RunConfig, roots: Sequence[Path]) -> None:
    """Reject a model that the run could not train. `folder` must have a config.json. Reads no files outside `roots`.

    Raises:
        ConfigurationError: config.json is unreadable, the model changes its logits, its layers cannot be shared by
            `rollout.tensor_parallel_size` GPUs, the tokenizer has no chat template or has ids that the embedding lacks,
            or the run's sequences may exceed the model's table of positions.
    """
    values = _config(folder, roots)
    check_logits(values.get)
    check_split(config.rollout.tensor_parallel_size, config.model.path, values.get)
    tokenizer = _read(folder / "tokenizer.json", _Tokenizer, roots)
    settings = _read(folder / "tokenizer_config.json", _TokenizerConfig, roots)
    num_rows, highest = _number(values, "vocab_size"), max(_tokens(tokenizer, settings), default=None)
    if num_rows is not None and highest is not None:
        check_tokens(config.model.path, num_rows, highest)
    if settings is not None and not config.model.trust_remote_code:
        _check_chat_template(folder, settings, config.model.path)
    limit = _table(values)
    if limit is not None:
        check_table(config, limit)


def check_teacher_folder(folder: Path, policy: Path | None, config: RunConfig, roots: Sequence[Path]) -> None:
    """Reject a fixed teacher that could not re-score the policy's responses. Arguments as for `check_model_folder`.

    Args:
        policy: the folder of `model.path`; None for a hub name, whose vocabulary is not known yet.

    Raises:
        ConfigurationError: config.json is unreadable, the teacher changes its logits, has another vocabulary than the
            policy, or too short a table of positions.
    """
    values = _config(folder, roots, "objective.teacher_path")
    check_logits(values.get, "objective.teacher_path")
    if policy is not None:
        rows = _number(values, "vocab_size"), _number(_config(policy, roots), "vocab_size")
        theirs, ours = _vocabulary(folder, roots), _vocabulary(policy, roots)
        check_teacher_vocabulary(str(config.objective.teacher_path), *rows, theirs, ours)
    limit = _table(values)
    if limit is not None:
        check_teacher_table(config, limit)


def _vocabulary(folder: Path, roots: Sequence[Path]) -> dict[str, int]:
    """Ids by token of tokenizer.json; empty if there is none."""
    tokenizer = _read(folder / "tokenizer.json", _Tokenizer, roots)
    return {token: number for number, token in _tokens(tokenizer, None)}


def _table(values: dict[str, Any]) -> int | None:
    """Length of the model's table of positions; None if it computes them."""
    limit = _number(values, "max_position_embeddings", "n_positions")
    return limit if values.get("model_type") in MODELS_WITH_TABLE else None


def _config(folder: Path, roots: Sequence[Path], field: str = "model.path") -> dict[str, Any]:
    """The language model's part of config.json. `field` names the folder."""
    values = _read(folder / "config.json", dict[str, Any], roots)
    if values is None:
        raise ConfigurationError(
            f"{field} is {folder}, whose config.json is not a JSON object.",
            remedy="Restore the model's original file.",
            field=field,
        )
    inner = values.get("text_config")
    return inner if isinstance(inner, dict) else values


def _read(path: Path, kind: type[T], roots: Sequence[Path]) -> T | None:
    """A JSON file of the model; None if it is missing, is outside the roots, or is not a JSON object."""
    try:
        place = path.resolve()
        inside = any(place.is_relative_to(root) for root in roots)
        if not inside or not place.is_file() or place.stat().st_size > MAX_BYTES:
            return None
        return msgspec.json.decode(place.read_bytes(), type=kind)
    except (OSError, RuntimeError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def _tokens(tokenizer: _Tokenizer | None, settings: _TokenizerConfig | None) -> Iterator[tuple[int, str]]:
    """Ids and tokens, the largest id among them."""
    if tokenizer is not None:
        yield from ((token.id, token.content) for token in tokenizer.added_tokens)
        vocabulary = tokenizer.model.vocab
        if isinstance(vocabulary, dict):
            yield from ((number, token) for token, number in vocabulary.items())
        elif vocabulary:
            yield len(vocabulary) - 1, "the last one"
    for number, token in (settings.added_tokens_decoder if settings is not None else {}).items():
        if number.isascii() and number.isdecimal():
            yield int(number[:18]), str(token.get("content", "")) if isinstance(token, dict) else ""


def _check_chat_template(folder: Path, settings: _TokenizerConfig, path: str) -> None:
    others = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
    if not settings.chat_template and not any((folder / name).exists() for name in others):
        raise ConfigurationError(
            f"model.path is {path}, whose tokenizer has no chat template.",
            remedy="Use an instruction-tuned model, or add a chat_template.jinja to its folder.",
            field="model.path",
        )


def _number(values: dict[str, Any], *names: str) -> int | None:
    """The first of these settings that is a number."""
    found = (values.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)

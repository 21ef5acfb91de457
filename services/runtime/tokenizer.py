"""A model's tokenizer and its chat template. Only services that have transformers can load one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.contracts.chat_template import DEFAULT_ARGUMENTS, Scalar
from services.contracts.errors import ConfigurationError
from services.contracts.messages import Question


def load_tokenizer(path: str, *, trust_remote_code: bool) -> Any:
    """The tokenizer of a model's folder or hub name.

    Raises:
        ConfigurationError: it cannot be loaded, or has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise unloadable("tokenizer", path, error) from error
    if not tokenizer.chat_template:
        raise ConfigurationError(
            f"The tokenizer of {path} has no chat template.",
            remedy="Use an instruction-tuned model, or add a chat_template.jinja to its folder.",
            field="model.path",
        )
    return tokenizer


def read_prompt(
    tokenizer: Any, place: str, question: Question, prompt: str, arguments: Mapping[str, Scalar]
) -> list[int]:
    """As `prompt_ids`; a template that rejects the messages is an error of their row.

    Raises:
        ConfigurationError: names the row by its `place`.
    """
    from jinja2 import TemplateError

    try:
        return prompt_ids(tokenizer, question, prompt, arguments)
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f"{place}: the model's chat template rejects the messages: {error}.",
            remedy="Correct the row, or set model.chat_template_kwargs.",
        ) from error


def load_vocabulary(path: str, field: str) -> dict[str, int]:
    """Ids by token of the tokenizer of a model's folder or hub name, which field `field` of the run file names.

    Raises:
        ConfigurationError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        found: dict[str, int] = AutoTokenizer.from_pretrained(path, trust_remote_code=False).get_vocab()
    except (OSError, ValueError) as error:
        raise unloadable("tokenizer", path, error, field) from error
    return found


def unloadable(what: str, path: str, error: Exception, field: str = "model.path") -> ConfigurationError:
    """The error for a model whose `what` cannot be loaded, and which `field` of the run file names."""
    first = str(error).strip().split("\n")[0]
    return ConfigurationError(
        f"The {what} of {path} cannot be loaded: {first}",
        remedy=f"Check {field}: it must be a Hugging Face folder, relative to the services' working directory, or a "
        "hub name.",
        field=field,
    )


def prompt_ids(
    tokenizer: Any, question: Question, prompt: str, arguments: Mapping[str, Scalar] = DEFAULT_ARGUMENTS
) -> list[int]:
    """Token ids of the question's system message and history, `prompt` as the user's, and the generation prompt.

    `arguments` are the chat template's. Raises whatever the template raises.
    """
    messages = [{"role": "system", "content": question.system}] if question.system else []
    messages += [{"role": turn.role, "content": turn.content} for turn in question.turns]
    messages.append({"role": "user", "content": prompt})
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **arguments
    )
    return [int(token) for token in ids]

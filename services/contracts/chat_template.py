"""Arguments of a model's chat template, such as `enable_thinking` or `reasoning_effort`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field

Scalar = str | bool | int | float | None
DEFAULT_ARGUMENTS: Final[Mapping[str, Scalar]] = {"enable_thinking": False}
"""What every template is given. Without it, models that can think would."""
MOST_ARGUMENTS: Final = 32
MOST_CHARACTERS: Final = 10_000
RESERVED: Final = frozenset(
    {
        "self",
        "messages",
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)
"""Names that the prompt's own rendering uses; some of them would cut prompts without saying so."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def _check(values: Any) -> Any:
    """Sentences of our own, because pydantic would name every type of a value in turn."""
    if not isinstance(values, Mapping):
        raise ValueError("must be names with values, such as {enable_thinking: true}")
    if len(values) > MOST_ARGUMENTS:
        raise ValueError(f"must have at most {MOST_ARGUMENTS} names")
    for name, value in values.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{str(name)[:60]!r} is not a name that a template can use; write letters, digits and _")
        if name in RESERVED:
            raise ValueError(f"{name} is set by Turnout when it renders a prompt; remove it")
        if not isinstance(value, str | bool | int | float | None):
            raise ValueError(f"{name} must be a text, a number, true, false or null")
        if isinstance(value, str) and len(value) > MOST_CHARACTERS:
            raise ValueError(f"{name} must have at most {MOST_CHARACTERS:,} characters")
        if isinstance(value, int | float) and not abs(value) < 2**53:
            raise ValueError(f"{name} must be a finite number below 2^53")
    return values


def _with_defaults(values: dict[str, Scalar]) -> dict[str, Scalar]:
    return {**DEFAULT_ARGUMENTS, **values}


Arguments = Annotated[dict[str, Scalar], Field(strict=True), BeforeValidator(_check)]
FullArguments = Annotated[Arguments, AfterValidator(_with_defaults)]


def unused_arguments(template: str, arguments: Mapping[str, Scalar]) -> list[str]:
    """Names of `arguments` that do not occur in the text of a template, and so change nothing. Those with their default
    value are not named: most templates have no use for them."""
    return [
        name
        for name, value in arguments.items()
        if DEFAULT_ARGUMENTS.get(name, ...) is not value and not re.search(rf"\b{name}\b", template)
    ]

"""Decodes response tokens to the text that rewards and teachers read (docs/rewards.md).

A tokenizer's own `skip_special_tokens` drops every special token, including `<answer>` and `<think>` if a model's tags
are special tokens. No response of such a model could ever be correct.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_NAMED: Final = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
_TAG: Final = re.compile(r"<(/?)([^<>/|\s]+)>")


class ResponseDecoder:
    """Decodes the responses of one model."""

    def __init__(self, tokenizer: Any, stop_token_ids: Sequence[int]) -> None:
        """`tokenizer` is a transformers tokenizer; `stop_token_ids` are the tokens that end a response."""
        self._tokenizer = tokenizer
        added = {int(token): str(value) for token, value in tokenizer.added_tokens_decoder.items()}
        self._tags = tags(added)
        self._stops = set(stop_token_ids) - self._tags
        self._control = control_tokens(tokenizer, stop_token_ids) - self._tags

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of a response, without control tokens and the token that ended it (unless that is a tag)."""
        if token_ids and token_ids[-1] in self._stops:
            token_ids = token_ids[:-1]
        kept = [token for token in token_ids if token not in self._control]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=False)
        return text


def control_tokens(tokenizer: Any, stop_token_ids: Sequence[int]) -> set[int]:
    """Special tokens that mark the beginning and end of a sequence or message, or pad it.

    These are the tokens that have a role in the tokenizer (such as `eos_token`), end a response, or occur in the chat
    template.
    """
    special = {int(token): str(value) for token, value in tokenizer.added_tokens_decoder.items() if value.special}
    named = {getattr(tokenizer, f"{name}_token_id", None) for name in _NAMED}
    template = str(tokenizer.chat_template or "")
    return {
        token for token, text in special.items() if token in named or token in stop_token_ids or text in template
    } | {token for token in named if token is not None}


def tags(added: Mapping[int, str]) -> set[int]:
    """Tokens of a pair such as `<think>` and `</think>`, which are part of the response's text.

    `<s>` and `</s>` look like such a pair, but begin and end sequences.
    """
    halves: dict[str, dict[str, int]] = {}
    for token, text in added.items():
        if (match := _TAG.fullmatch(text)) and match[2] != "s":
            halves.setdefault(match[2], {})[match[1]] = token
    return {token for pair in halves.values() if len(pair) == 2 for token in pair.values()}

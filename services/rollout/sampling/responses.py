"""Decodes response tokens to the text that rewards and teachers read (docs/rewards.md).

A tokenizer's own `skip_special_tokens` drops every special token, including `<answer>` and `<think>` if a model's tags
are special tokens. No response of such a model could ever be correct.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.contracts.messages import Thinking
from services.contracts.thinking import thinking_end

_NAMED: Final = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
_TAG: Final = re.compile(r"<(/?)([^<>/|\s]+)>")


class ResponseDecoder:
    """Decodes the responses of one model."""

    def __init__(self, tokenizer: Any, stop_token_ids: Sequence[int], markers: Sequence[str] = ()) -> None:
        """`tokenizer` is a transformers tokenizer; `stop_token_ids` are the tokens that end a response; `markers` are
        part of its text, even if they are special tokens."""
        self._tokenizer = tokenizer
        added = {int(token): str(value) for token, value in tokenizer.added_tokens_decoder.items()}
        self._tags = tags(added) | {token for token, text in added.items() if text in markers}
        self._stops = set(stop_token_ids) - self._tags
        self._control = control_tokens(tokenizer, stop_token_ids) - self._tags

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of a response, without control tokens and the token that ended it (unless that is a tag)."""
        if token_ids and token_ids[-1] in self._stops:
            token_ids = token_ids[:-1]
        kept = [token for token in token_ids if token not in self._control]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=False)
        return text


class ThinkingReader:
    """Finds where the thinking of a model's responses ends."""

    def __init__(self, decoder: ResponseDecoder, opening: str, closing: str) -> None:
        self._decoder, self._opening, self._closing = decoder, opening, closing

    def read(self, token_ids: Sequence[int], text: str, prompt: str) -> Thinking:
        """The thinking of a response with these tokens and this text, after a rendered `prompt`. If a chat template
        ends the prompt with the opening marker, the response begins in the middle of its thinking."""
        end = thinking_end(text, self._opening, self._closing, opened=prompt.rstrip().endswith(self._opening))
        if end is None:
            return Thinking(num_tokens=len(token_ids), num_characters=len(text), closed=False)
        return Thinking(num_tokens=self._num_tokens(token_ids, text[:end]), num_characters=end, closed=True)

    def _num_tokens(self, token_ids: Sequence[int], thinking: str) -> int:
        """The fewest first tokens whose text has as many closing markers as `thinking`."""
        count = thinking.count(self._closing)
        return bisect_left(
            range(len(token_ids)),
            count,
            key=lambda number: self._decoder.text(token_ids[:number]).count(self._closing),
        )


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

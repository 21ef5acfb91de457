"""Questions to prompt tokens, by the model's own chat template."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from jinja2 import TemplateError

from services.contracts.errors import InfrastructureError
from services.contracts.messages import Question
from services.runtime.tokenizer import prompt_ids

CACHE_SIZE = 4096


class PromptRenderer:
    """Renders and remembers prompts: an epoch later the same questions come again."""

    def __init__(self, tokenizer: Any, vocabulary_size: int) -> None:
        """`tokenizer`: a transformers tokenizer with a chat template. `vocabulary_size`: tokens that the model has."""
        self.tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._cache: OrderedDict[tuple[str, str], list[int]] = OrderedDict()

    def render(self, question: Question, max_prompt_tokens: int) -> list[int]:
        """Token ids of system and user message with the generation prompt; thinking off where the template knows it.

        Raises:
            InfrastructureError: the template refuses the messages, the tokenizer gives a token that the model does not
                have (the engine would die of it), or the prompt is longer than `max_prompt_tokens`. Prompts are never
                cut: a question without its end has another answer.
        """
        key = (question.system, question.prompt)
        token_ids = self._cache.get(key)
        if token_ids is None:
            token_ids = self._render(question)
            self._cache[key] = token_ids
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        if len(token_ids) > max_prompt_tokens:
            raise InfrastructureError(
                f"Question {question.id} renders to {len(token_ids)} tokens, over rollout.max_prompt_tokens "
                f"({max_prompt_tokens})."
            )
        return token_ids

    def _render(self, question: Question) -> list[int]:
        try:
            token_ids = prompt_ids(self.tokenizer, question, question.prompt)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise InfrastructureError(f"The chat template refuses question {question.id}: {error}.") from error
        largest = max(token_ids, default=0)
        if largest >= self._vocabulary_size:
            raise InfrastructureError(
                f"Question {question.id} renders to token {largest}, beyond the model's vocabulary of "
                f"{self._vocabulary_size}: the tokenizer does not fit the model."
            )
        return token_ids


def stop_tokens(model: str, config: Any) -> list[int]:
    """Ids that end a response, from the model's generation_config and text `config`, with the tokenizer's own.

    vLLM is told to leave the model's generation_config alone, lest it change sampling; the ids that end a reply are the
    one thing that must be taken from it (chat models often end a turn with another token than the tokenizer's).
    """
    from transformers import GenerationConfig

    found: list[Any] = []
    try:
        found.append(GenerationConfig.from_pretrained(model).eos_token_id)
    except OSError:
        pass  # many models come without one
    found.append(getattr(config, "eos_token_id", None))
    ids: set[int] = set()
    for value in found:
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return sorted(ids)

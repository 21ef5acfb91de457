"""Renders questions to prompt tokens with the model's own chat template."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError

from services.contracts.chat_template import DEFAULT_ARGUMENTS, Scalar
from services.contracts.errors import InfrastructureError
from services.contracts.messages import Question, Turn
from services.runtime.tokenizer import prompt_ids

CACHE_SIZE = 4096


class PromptRenderer:
    """Renders and caches prompts, since every epoch has the same questions."""

    def __init__(
        self,
        tokenizer: Any,
        vocabulary_size: int,
        arguments: Mapping[str, Scalar] = DEFAULT_ARGUMENTS,
        teacher_arguments: Mapping[str, Scalar] | None = None,
    ) -> None:
        """`tokenizer` must be a transformers tokenizer with a chat template. `vocabulary_size` is the model's,
        `arguments` are the template's; those for the self-teacher's prompts are the same unless given."""
        self.tokenizer = tokenizer
        self._arguments = {False: arguments, True: arguments if teacher_arguments is None else teacher_arguments}
        self._vocabulary_size = vocabulary_size
        self._cache: OrderedDict[tuple[bool, str, tuple[Turn, ...], str], list[int]] = OrderedDict()

    def render(self, question: Question, max_prompt_tokens: int, *, is_teacher: bool = False) -> list[int]:
        """Token ids of the question's messages with the generation prompt.

        Raises:
            InfrastructureError: the template rejects the messages, the tokenizer returns a token that the model lacks
                (which would crash the engine), or the prompt is longer than `max_prompt_tokens`. Prompts are never
                truncated, because a question without its end has a different answer.
        """
        key = (is_teacher, question.system, question.turns, question.prompt)
        token_ids = self._cache.get(key)
        if token_ids is None:
            token_ids = self._render(question, self._arguments[is_teacher])
            self._cache[key] = token_ids
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        if len(token_ids) > max_prompt_tokens:
            raise InfrastructureError(
                f"The prompt of question {question.id} has {len(token_ids)} tokens, but rollout.max_prompt_tokens is "
                f"{max_prompt_tokens}."
            )
        return token_ids

    def _render(self, question: Question, arguments: Mapping[str, Scalar]) -> list[int]:
        try:
            token_ids = prompt_ids(self.tokenizer, question, question.prompt, arguments)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise InfrastructureError(f"The chat template rejects question {question.id}: {error}.") from error
        largest = max(token_ids, default=0)
        if largest >= self._vocabulary_size:
            raise InfrastructureError(
                f"The prompt of question {question.id} contains token {largest}, but the model's vocabulary has only "
                f"{self._vocabulary_size} tokens: the tokenizer does not fit the model."
            )
        return token_ids


def stop_tokens(model: str, config: Any) -> list[int]:
    """Ids that end a response, from the model's generation_config and text `config`, with the tokenizer's own.

    vLLM is told to ignore the model's generation_config, so that it cannot change sampling. The ids that end a response
    are the one exception, since chat models often end a turn with a different token than the tokenizer's.
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

"""The self-teacher's prompt: its token ids, and what of a rollout it shows (docs/algorithm.md, "SDPO branch").

Same system message and chat template as the student's prompt, with thinking as the run's template arguments say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.contracts.chat_template import DEFAULT_ARGUMENTS, Scalar, unused_arguments
from services.contracts.messages import Question, Rollout
from services.contracts.run_config import RunConfig
from services.contracts.teacher_text import PAPER, Wording, teacher_text
from services.contracts.thinking import without_thinking
from services.contracts.trainable import teacher_tokens
from services.runtime.tokenizer import prompt_ids


def shown_response(rollout: Rollout, config: RunConfig) -> str:
    """A rollout's text as the teacher reads it; empty if it demonstrates nothing, because there is no answer in it."""
    opening, closing = config.thinking_markers
    answer = without_thinking(rollout.answer or "", opening, closing)
    if not answer or config.objective.demonstration_thinking == "cut":
        return answer
    text = rollout.text.strip()
    begun_by_template = closing in text and opening not in text
    return f"{opening}\n{text}" if begun_by_template else text


def teacher_prompt_ids(
    tokenizer: Any,
    question: Question,
    solution: str | None,
    feedback: str | None,
    arguments: Mapping[str, Scalar] = DEFAULT_ARGUMENTS,
    further: Sequence[str] = (),
    *,
    wording: Wording = PAPER,
) -> list[int]:
    """Token ids of the teacher's prompt, generation prompt included. `arguments` are the chat template's, the rest is
    as for `teacher_text`."""
    text = teacher_text(question.prompt, solution, feedback, further, wording=wording)
    return prompt_ids(tokenizer, question, text, arguments)


def template_warning(config: RunConfig, template: str) -> str | None:
    """What to tell a run's people if the text of the chat template does not use arguments that they set, else None."""
    fields = {"model.chat_template_kwargs": config.model.chat_template_kwargs}
    if config.objective.teacher_chat_template_kwargs is not None:
        fields["objective.teacher_chat_template_kwargs"] = config.objective.teacher_chat_template_kwargs
    unused = [f"{field}.{name}" for field, given in fields.items() for name in unused_arguments(template, given)]
    if not unused:
        return None
    return f"The model's chat template does not use {', '.join(unused)}: check the spelling, or remove it."


def position_warning(config: RunConfig, num_positions: int | None, teacher_positions: int | None) -> str | None:
    """What to tell a run's people if its sequences or its teacher's may exceed the model's positions, else None.

    Solution and response are of one model under one limit each. Feedback comes on top, and what the headings take.
    """
    if num_positions is not None and config.max_model_tokens > num_positions:
        return (
            f"Prompt and response may be {config.max_model_tokens} tokens long, but the model has {num_positions} "
            "positions: a response ends there. Lower rollout.max_response_tokens or rollout.max_prompt_tokens."
        )
    num_tokens = teacher_tokens(config)
    if num_tokens is None or teacher_positions is None or num_tokens <= teacher_positions:
        return None
    return (
        f"The teacher reads question, solution and response: up to {num_tokens} tokens and any feedback, but its "
        f"model has {teacher_positions} positions. Beyond them its word is worth little, and some models fail there. "
        "Lower rollout.max_response_tokens if responses get that long."
    )

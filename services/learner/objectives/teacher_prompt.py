"""What the self-teacher reads: question, a correct sibling's solution, feedback (docs/algorithm.md, "SDPO branch").

Same system message and chat template as the student's prompt, with thinking as the run's template arguments say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from services.contracts.chat_template import DEFAULT_ARGUMENTS, Scalar, unused_arguments
from services.contracts.messages import Question, Rollout
from services.contracts.objectives.settings import QUESTION, ObjectiveSettings
from services.contracts.run_config import RunConfig
from services.contracts.thinking import without_thinking
from services.contracts.trainable import teacher_tokens
from services.runtime.tokenizer import prompt_ids


@dataclass(frozen=True, slots=True)
class Wording:
    """The texts around solution and feedback; empty ones are left out. `{question}` in the closing is the question."""

    solution_heading: str
    feedback_heading: str
    closing: str

    @classmethod
    def of(cls, section: ObjectiveSettings) -> Self:
        return cls(section.teacher_solution_heading, section.teacher_feedback_heading, section.teacher_closing)


PAPER = Wording.of(ObjectiveSettings())
"""Those of arXiv 2604.02288, the defaults."""


def shown_response(rollout: Rollout, config: RunConfig) -> str:
    """A rollout's text as the teacher reads it; empty if it demonstrates nothing, because there is no answer in it."""
    opening, closing = config.thinking_markers
    answer = without_thinking(rollout.answer or "", opening, closing)
    if not answer or config.objective.demonstration_thinking == "cut":
        return answer
    text = rollout.text.strip()
    begun_by_template = closing in text and opening not in text
    return f"{opening}\n{text}" if begun_by_template else text


def shown_solution(question: Question, config: RunConfig) -> str:
    """A row's solution as the teacher reads it; empty for none."""
    solution = question.solution or ""
    answer = without_thinking(solution, *config.thinking_markers)
    return solution.strip() if answer and config.objective.demonstration_thinking == "keep" else answer


def teacher_text(
    prompt: str, solution: str | None, feedback: str | None, further: Sequence[str] = (), *, wording: Wording = PAPER
) -> str:
    """The user message of the teacher's prompt. Without solution and feedback it is the question itself.

    `solution` is as `shown_response` or `shown_solution` returns it, and so are `further` ones, which are numbered.
    """
    if solution is None and feedback is None:
        return prompt
    parts = [prompt]
    if solution is not None and not further:
        parts += [wording.solution_heading, solution]
    elif solution is not None:
        heading = wording.solution_heading.removesuffix(":")
        for number, text in enumerate((solution, *further), start=1):
            parts += [f"{heading} {number}:".strip(), text]
    if feedback is not None:
        parts += [wording.feedback_heading, feedback.strip()]
    parts.append(wording.closing.replace(QUESTION, prompt))
    return "\n\n".join(part for part in parts if part)


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

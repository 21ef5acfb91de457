"""The embedded policy's tokenizer and chat template.

Every phrase that can occur in the benchmark and in the teacher's prompt is one token: a good, a two-digit number, a
sign, a whole section heading. No token is a prefix of another (except " " of " should be ", whose rest no tokens
spell), so a text has only one reading and ids -> text -> ids gives the same ids. Text in between becomes `<unk>`.
"""

import re
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from examples.embedded.benchmark import GOODS, SYSTEM

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<unk>"
ROLES: Final = ("<|system|>", "<|user|>", "<|assistant|>")
SOLUTION_HEADING: Final = "\n\nCorrect solution:\n\n"
FEEDBACK_HEADING: Final = "\n\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
SECOND_THOUGHT: Final = "; wait, "
CLOSING: Final = "\n\nCorrectly solve the original question."
PHRASES: Final = (
    *(SYSTEM, "Total tonnes of ", ", ", "?", SOLUTION_HEADING, FEEDBACK_HEADING, CLOSING, " should be "),
    *("<reasoning>", "</reasoning>", "<answer>", "</answer>", SECOND_THOUGHT, " ", "=", "+"),
)
NUMBERS: Final = tuple(str(number) for number in range(10, 100))
VOCABULARY: Final = (PAD, END, UNKNOWN, *ROLES, *PHRASES, *NUMBERS, *GOODS)
"""Tokens in the order of their ids."""

CHAT_TEMPLATE: Final = (
    "{%- for message in messages -%}\n"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}\n"
    "{%- if message['role'] == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}\n"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    core = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    longest_first = sorted((*PHRASES, *NUMBERS, *GOODS), key=len, reverse=True)
    pattern = "|".join(re.escape(phrase) for phrase in longest_first)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def render(user: str) -> str:
    """The system message and `user` as the chat template renders them, up to the beginning of the reply."""
    system_role, user_role, assistant_role = ROLES
    return f"{system_role}{SYSTEM}{user_role}{user}{assistant_role}"


def teacher_content(question: str, solution: str | None, feedback: str | None) -> str:
    """The user message that the self-teacher reads: the question, a solution, feedback or both."""
    parts = [question]
    if solution is not None:
        parts.append(SOLUTION_HEADING + solution)
    if feedback is not None:
        parts.append(FEEDBACK_HEADING + feedback)
    return "".join([*parts, CLOSING])


def save_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`."""
    build_tokenizer().save_pretrained(folder)

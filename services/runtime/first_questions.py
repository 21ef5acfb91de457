"""Renders the first questions of a run's data as its model will read them, in a process of its own.

    python -m services.runtime.first_questions < REQUEST

REQUEST is a `Request` as JSON. Writes `FirstQuestions` as JSON. Loading a tokenizer takes seconds and memory, and a
chat template is a program, so the API does neither itself.
"""

from __future__ import annotations

import resource
import sys
from itertools import islice
from typing import Any, Final

import msgspec

from services.contracts.errors import ConfigurationError
from services.contracts.messages import Question
from services.contracts.questions.reading import read_source
from services.contracts.run_config import RunConfig, read_run_config
from services.runtime.tokenizer import load_tokenizer, read_prompt

MOST_MEMORY: Final = 8 << 30
"""Bytes of address space."""
MOST_CHARACTERS: Final = 20_000
"""Of a text; the rest is cut off."""
NO_LIBRARY: Final = (
    "This is the question alone: the API's machine has no transformers to render the model's chat template with."
)


class Request(msgspec.Struct, frozen=True):
    """What to render."""

    config: dict[str, Any]
    rows: int
    """Questions of each source."""


class FirstQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """One question, rendered."""

    source: str
    """The field that names the source: `data.train`."""
    place: str
    """File and line."""
    kind: str
    text: str
    """What the model reads, special tokens included."""
    num_tokens: int | None
    """Null if the chat template could not be rendered here."""
    answer: str


class FirstQuestions(msgspec.Struct, frozen=True, kw_only=True):
    """The first questions of every source, or what is wrong."""

    questions: list[FirstQuestion] = []
    note: str = ""
    """Why `text` is not exactly what the model reads; usually empty."""
    fault: str = ""
    field: str = ""
    remedy: str = ""


def first_questions(config: RunConfig, rows: int) -> FirstQuestions:
    """Raises `ConfigurationError` for data or a tokenizer that cannot be read."""
    note, tokenizer = "", None
    try:
        tokenizer = load_tokenizer(config.model.path, trust_remote_code=False)
    except ImportError:
        note = NO_LIBRARY
    shown = [
        _shown(tokenizer, config, field, place, question)
        for field, source in config.data.sources()
        for place, question in islice(read_source(source), rows)
    ]
    return FirstQuestions(questions=shown, note=note)


def _shown(tokenizer: Any, config: RunConfig, field: str, place: str, question: Question) -> FirstQuestion:
    text, num_tokens = question.prompt, None
    if tokenizer is not None:
        ids = read_prompt(tokenizer, place, question, question.prompt, config.model.chat_template_kwargs)
        text, num_tokens = tokenizer.decode(ids), len(ids)
    return FirstQuestion(
        source=field,
        place=place,
        kind=question.kind,
        text=_cut(text),
        num_tokens=num_tokens,
        answer=_cut(question.answer),
    )


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    sys.modules["torch"] = None  # type: ignore[assignment]  # tokenizers do without, and load in a third of the time
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        found = first_questions(read_run_config(msgspec.json.encode(request.config)), request.rows)
    except ConfigurationError as error:
        found = FirstQuestions(fault=error.message, field=error.field or "", remedy=error.remedy)
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()

"""`turnout data ...`: what a run's model and teacher will read."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turnout.cli.options import File, Json, Settings, examples

if TYPE_CHECKING:
    from services.contracts.messages import Question
    from services.contracts.run_config import RunConfig

app = typer.Typer(
    help="Look at a run's questions.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
SOLUTION = "[a correct response of a sibling]"
Placed = list[tuple[str, "Question"]]


@app.callback()
def data() -> None:
    """Look at a run's questions."""


@app.command(epilog=examples("turnout data show my.yaml", "turnout data show my.yaml --rows 1 --json"))
def show(
    file: File,
    settings: Settings = None,
    rows: Annotated[int, typer.Option(min=0, help="Questions to show of each source.")] = 2,
    as_json: Json = False,
) -> None:
    """Show the first questions as the model and the teacher read them, with token counts; report duplicates, validation
    questions that are in training, and prompts that are too long. Needs the model's tokenizer on this machine."""
    from services.contracts.questions.reading import read_source
    from services.contracts.run_config import parse_run_config
    from services.runtime.tokenizer import load_tokenizer
    from turnout.cli import output
    from turnout.cli.run_file import load_run

    config = parse_run_config(load_run(file, settings or []))
    tokenizer = load_tokenizer(config.model.path, trust_remote_code=False)
    found = {field: list(read_source(source)) for field, source in config.data.sources()}
    shown = {
        field: [_rendered(tokenizer, config, place, question) for place, question in questions[:rows]]
        for field, questions in found.items()
    }
    report = {field: _facts(tokenizer, config, questions) for field, questions in found.items()}
    shared = _shared(found)
    text = "\n".join([*_lines(shown), *_summary(report), *(f"in training, too: {line}" for line in shared)])
    output.show({"rows": shown, "sources": report, "in_training": shared}, as_json, text)


def _rendered(tokenizer: Any, config: RunConfig, place: str, question: Question) -> dict[str, Any]:
    from services.contracts.teacher_text import Wording, teacher_text
    from services.runtime.tokenizer import read_prompt

    model = read_prompt(tokenizer, place, question, question.prompt, config.model.chat_template_kwargs)
    shown = teacher_text(question.prompt, SOLUTION, None, wording=Wording.of(config.objective))
    teacher = read_prompt(tokenizer, place, question, shown, config.teacher_chat_template_kwargs)
    return {
        "place": place,
        "kind": question.kind,
        "model": tokenizer.decode(model),
        "model_tokens": len(model),
        "teacher": tokenizer.decode(teacher),
        "answer": question.answer,
    }


def _facts(tokenizer: Any, config: RunConfig, questions: Placed) -> dict[str, Any]:
    """Numbers of questions, duplicates and prompts that are too long, with the first places of each."""
    from services.runtime.tokenizer import read_prompt

    limit, arguments = config.rollout.max_prompt_tokens, config.model.chat_template_kwargs
    lengths = [
        len(read_prompt(tokenizer, place, question, question.prompt, arguments)) for place, question in questions
    ]
    places = defaultdict(list)
    for place, question in questions:
        places[question.system, question.turns, question.prompt].append(place)
    repeated = [found for found in places.values() if len(found) > 1]
    too_long = [place for (place, _), length in zip(questions, lengths, strict=True) if length > limit]
    return {
        "questions": len(questions),
        "longest_prompt_tokens": max(lengths, default=0),
        "too_long": len(too_long),
        "first_too_long": too_long[:3],
        "duplicates": sum(len(found) - 1 for found in repeated),
        "first_duplicates": repeated[:3],
    }


def _shared(found: dict[str, Placed]) -> list[str]:
    """Validation questions whose prompt, with what precedes it in a conversation, is in a training source."""
    train = {
        (question.turns, question.prompt): place
        for field, items in found.items()
        if "train" in field
        for place, question in items
    }
    return [
        f"{place} is {train[question.turns, question.prompt]}"
        for field, items in found.items()
        if "validation" in field
        for place, question in items
        if (question.turns, question.prompt) in train
    ]


def _lines(shown: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [
        line
        for field, items in shown.items()
        for item in items
        for line in (
            f"{field}: {item['place']}, kind {item['kind']}, {item['model_tokens']} tokens",
            f"the model reads:\n{item['model']}",
            f"the teacher reads:\n{item['teacher']}",
            f"answer: {item['answer']}\n",
        )
    ]


def _summary(report: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{field}: {facts['questions']:,} questions, {facts['duplicates']:,} duplicates, {facts['too_long']:,} too "
        f"long; the longest prompt has {facts['longest_prompt_tokens']:,} tokens"
        + "".join(f"\n  duplicate: {', '.join(found)}" for found in facts["first_duplicates"])
        + "".join(f"\n  too long: {place}" for place in facts["first_too_long"])
        for field, facts in report.items()
    ]

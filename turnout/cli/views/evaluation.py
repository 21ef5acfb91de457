"""An evaluation for a terminal: progress, results with intervals, and the difference of two."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

from services.contracts.errors import UnavailableError
from services.contracts.plain_text import in_line
from services.contracts.records import (
    ChangedQuestion,
    EvaluationDifference,
    IntervalEstimate,
    ModelEvaluation,
    ModelEvaluationSummary,
    SetDifference,
)
from turnout.cli.interrupts import Interrupts
from turnout.cli.output import duration
from turnout.cli.terminal import console, say, say_json
from turnout.client.client import Client

POLL_SECONDS = 1.0
UNENDED = ("queued", "running")
HEADER = ["set", "questions", "k", "avg@k", "pass@k", "solved", "tokens", "cut", "faults"]


def watch(client: Client, evaluation_id: str, *, as_json: bool = False) -> ModelEvaluation | None:
    """Show progress until the evaluation ends; None if the user interrupts. The evaluation itself is not affected."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    drawn = sys.stdout.isatty() and not as_json
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    said = ""
    with (
        Interrupts() as interrupts,
        Progress(*columns, TimeRemainingColumn(), console=console(), disable=not drawn) as bar,
    ):
        task = bar.add_task("", total=None)
        while not interrupts.requested:
            try:
                found = client.evaluation(evaluation_id)
            except UnavailableError as error:
                said = _say_once(f"the API does not answer: {error.message}", said, as_json or drawn)
                interrupts.sleep(POLL_SECONDS)
                continue
            text = in_line(found.reason or f"{found.name}: {found.state}")
            bar.update(task, description=text, completed=found.num_done, total=found.num_questions)
            if as_json:
                line = f"{found.state} {found.num_done} {found.reason}"
                if line != said:
                    say_json({"evaluation": found})
                    said = line
            else:
                said = _say_once(_progress(found), said, drawn)
            if found.state not in UNENDED:
                return found
            interrupts.sleep(POLL_SECONDS)
    return None


def _say_once(text: str, said: str, silent: bool) -> str:
    if text != said and not silent:
        say(f"{time.strftime('%H:%M:%S')}  {text}")
    return text


def _progress(found: ModelEvaluation) -> str:
    tenth = 10 * found.num_done // found.num_questions * 10 if found.num_questions else 0
    return f"{found.state}, {tenth}% of the questions" + (f"; {found.reason}" if found.reason else "")


def headline(found: ModelEvaluationSummary) -> str:
    """The evaluation's state in a line."""
    what = f"run {found.run} at step {found.step}" if found.run else found.model
    text = f"{found.id}  {found.name} ({what}): {found.state}, {questions_of(found)} questions"
    if found.started_at is not None and found.finished_at is not None:
        text += f" in {duration(found.finished_at - found.started_at)}"
    return text + (f"; {found.reason}" if found.reason else "")


def questions_of(found: ModelEvaluationSummary) -> str:
    total = "?" if found.num_questions is None else str(found.num_questions)
    return total if found.state == "succeeded" else f"{found.num_done}/{total}"


def list_rows(items: Sequence[ModelEvaluationSummary]) -> list[list[str]]:
    rows = []
    for item in items:
        results = ", ".join(f"{result.set} {interval(result.accuracy)}" for result in item.results)
        rows.append([item.id, item.name, item.state, questions_of(item), results or item.reason])
    return rows


def result_rows(found: ModelEvaluation) -> list[list[str]]:
    """One row per set, under `HEADER`."""
    return [
        [
            result.set,
            str(result.num_questions),
            str(result.num_samples),
            interval(result.accuracy),
            interval(result.pass_at_k[-1].share),
            str(result.num_solved),
            f"{result.response_tokens_mean:.0f}",
            f"{result.truncated_ratio:.1%}",
            str(result.num_faults),
        ]
        for result in found.results
    ]


def interval(estimate: IntervalEstimate, *, signed: bool = False) -> str:
    """`61.2% [58.0, 64.1]`, or with a sign as a difference in points."""
    form = "+.1f" if signed else ".1f"
    text = f"{100 * estimate.value:{form}}" + ("" if signed else "%")
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{100 * estimate.low:{form}}, {100 * estimate.high:{form}}]"


def difference_lines(found: EvaluationDifference, most: int | None, label: str = "") -> Iterator[str]:
    """The difference per set, then at most `most` questions learned and forgotten; None for all."""
    yield f"{label}{found.second} against {label}{found.first}"
    if not found.sets:
        yield "They have no question in common: the names of the sets or the questions' ids differ."
    for item in found.sets:
        yield ""
        yield (
            f"{item.set}: avg@k {item.before:.1%} -> {item.after:.1%}, difference "
            f"{interval(item.difference, signed=True)} points on {item.num_questions} questions "
            f"({item.num_better} better, {item.num_worse} worse)"
        )
        yield from _changed("learned", item.learned, item, most)
        yield from _changed("forgotten", item.forgotten, item, most)
    if found.num_unpaired:
        yield ""
        yield f"{found.num_unpaired} questions are left out because only one of the two has them."


def _changed(word: str, items: Sequence[ChangedQuestion], of: SetDifference, most: int | None) -> Iterator[str]:
    yield f"  {word}: {len(items)} of {of.num_questions}"
    for item in items[:most]:
        yield f"    {item.question_id}  {item.before:.0%} -> {item.after:.0%}"
    if most is not None and len(items) > most:
        yield f"    and {len(items) - most} more (--all)"

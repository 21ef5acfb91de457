"""What a dataset's row must contain to be judged, by kind of question (docs/rewards.md).

The learner checks rows with these forms when a run starts, so that a bad row gives an error with file and line. The
verifier checks questions with them when it judges, so that a bad one cannot earn a reward. Kinds of installed packages
have their own forms, which are unknown here.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple, NoReturn, TypeVar

import msgspec

from services.contracts.errors import QuestionError
from services.contracts.messages import Question
from services.contracts.questions.code_tests import read_tests
from services.contracts.questions.formulas.reader import read
from services.contracts.questions.formulas.tree import Node, Unreadable
from services.contracts.strict_json import BadJsonError, read_json

S = TypeVar("S", bound="Settings")
_CORRECT_ROW: Final = "Correct the dataset's row (docs/rewards.md)."
_PROBES: Final = (*string.ascii_letters, *string.digits, *string.punctuation, "\u00e9", "\u4e2d", "a b")
"""Short, so that no pattern takes long on them."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON object in a question's `tests`, for kinds that need none."""


class PartialCredit(Settings, frozen=True, forbid_unknown_fields=True):
    partial_credit: bool = False


class TextSettings(Settings, frozen=True, forbid_unknown_fields=True):
    ignore_case: bool = False
    where: Literal["answer", "reply"] | msgspec.UnsetType = msgspec.UNSET


class ExactSettings(TextSettings, frozen=True, forbid_unknown_fields=True):
    accept: list[str | int] = []


class RegexSettings(TextSettings, frozen=True, forbid_unknown_fields=True):
    full: bool = False


Requirement = Literal["answer", "boxed", "thinking"]


class FormatSettings(Settings, frozen=True, forbid_unknown_fields=True):
    requires: list[Requirement] = []
    pattern: str = ""


class JudgeSettings(Settings, frozen=True, forbid_unknown_fields=True):
    rubric: str = (
        "How well does the response answer the prompt? It must be right, complete, and do what the prompt asks for. If "
        "there is a reference answer, a response that contradicts it gets the lowest score."
    )
    scale: tuple[float, float] = (0.0, 10.0)
    """Lowest and highest score."""
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """Least reward, that is place on the scale, which counts as correct."""


class LengthSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the part `length`, which no row has as its kind."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    buffer_tokens: Annotated[int, msgspec.Meta(ge=1)]


Total = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]+\Z")]
Amount = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(pattern=r"\S")]


class RecallSettings(PartialCredit, frozen=True, forbid_unknown_fields=True, kw_only=True):
    facts: Annotated[dict[Name, Amount | Total], msgspec.Meta(min_length=1)]


class ToolCall(NamedTuple):
    """One call that a row of kind `tooluse` expects."""

    action: str
    inputs: dict[str, Any]


def check_question(question: Question) -> None:
    """Raise `QuestionError` if no reply to `question` can be judged, or if every reply would be correct."""
    read = FORMS.get(question.kind)
    if read is not None:
        read(question)
    elif (meant := question.kind.strip().casefold()) in FORMS:
        refuse(question, f"kind is {question.kind!r}", f"Write {meant!r}.")


def refuse(question: Question, what: str, remedy: str = _CORRECT_ROW) -> NoReturn:
    raise QuestionError(f"Question {question.id}: {what}.", remedy=remedy)


def read_settings(question: Question, form: type[S]) -> S:
    """The question's `tests` by `form`; its defaults for datasets that write nothing or "-" there.

    Raises:
        QuestionError: not a JSON object, a setting that is misspelt, or a value that is none for it.
    """
    text = question.tests.strip()
    try:
        found = {} if text in ("", "-") else read_json(text)
    except BadJsonError as error:
        refuse(question, f"tests is not valid JSON ({error})")
    if not isinstance(found, dict):
        refuse(question, "tests is not a JSON object")
    try:
        return msgspec.convert(found, form)
    except msgspec.ValidationError as error:
        known = ", ".join(form.__struct_fields__) or "none"
        refuse(question, f"tests: {error}", f"Correct the dataset's row; settings of kind {question.kind}: {known}.")


def mcq_letter(question: Question) -> str:
    """The capital letter of the right option."""
    read_settings(question, Settings)
    letter = needed_answer(question)
    if len(letter) != 1 or letter not in string.ascii_uppercase:
        refuse(question, f"answer is {letter[:60]!r}, not the capital letter of an option")
    return letter


def exact_texts(question: Question) -> tuple[list[str], ExactSettings]:
    """The texts that are right."""
    options = read_settings(question, ExactSettings)
    texts = [needed_answer(question), *(str(text).strip() for text in options.accept)]
    if not all(texts):
        refuse(question, "tests.accept has an empty text, which an empty answer would equal")
    return texts, options


def regex_pattern(question: Question) -> tuple[re.Pattern[str], RegexSettings]:
    """The pattern that right replies have."""
    options = read_settings(question, RegexSettings)
    needed_answer(question)
    try:
        pattern, is_empty, is_all = _pattern(question.answer, options.ignore_case, options.full)
    except (re.error, RecursionError, OverflowError) as error:
        refuse(question, f"answer is not a regular expression ({error})")
    if is_empty or is_all:
        what = "an empty answer" if is_empty else "every answer"
        refuse(question, f"answer is {question.answer[:60]!r}, a pattern that {what} satisfies")
    return pattern, options


@lru_cache(maxsize=512)
def _pattern(text: str, ignore_case: bool, full: bool) -> tuple[re.Pattern[str], bool, bool]:
    """The pattern, whether the empty text satisfies it, and whether all texts seem to.

    What it forbids by `(?!` may be a word that no probe has.
    """
    pattern = re.compile(text, re.IGNORECASE if ignore_case else 0)
    matches = pattern.fullmatch if full else pattern.search
    return pattern, matches("") is not None, "(?!" not in text and all(map(matches, _PROBES))


def recall_facts(question: Question) -> tuple[str, RecallSettings]:
    """The total, and the facts with their values."""
    options = read_settings(question, RecallSettings)
    total = needed_answer(question)
    if not re.fullmatch("[0-9]+", total):
        refuse(question, f"answer is {total[:60]!r}, not a total in digits")
    return total, options


def tool_calls(question: Question) -> tuple[list[ToolCall], PartialCredit]:
    """The calls of `answer`, a JSON list of {"Action": name, "Action_Input": JSON object or its text}."""
    options = read_settings(question, PartialCredit)
    try:
        items = read_json(question.answer)
        if not isinstance(items, list):
            raise BadJsonError("it is not a list")
        return [_tool_call(item) for item in items], options
    except BadJsonError as error:
        refuse(question, f'answer is not a JSON list of {{"Action", "Action_Input"}} ({error})')


def _tool_call(item: Any) -> ToolCall:
    action, inputs = (item.get("Action"), item.get("Action_Input")) if isinstance(item, dict) else (None, None)
    if not isinstance(action, str) or not action.strip():
        raise BadJsonError("an item has no Action")
    if isinstance(inputs, str):
        inputs = read_json(inputs)
    if not isinstance(inputs, dict):
        raise BadJsonError("the Action_Input of an item is not a JSON object")
    return ToolCall(action.strip(), inputs)


def http_url(question: Question) -> str | None:
    """The endpoint that the question names, None for none. The rest of `tests` is the endpoint's own."""
    if not question.tests.lstrip().startswith("{"):
        return None
    try:
        url = read_json(question.tests).get("url")
    except BadJsonError as error:
        refuse(question, f"tests is not valid JSON ({error})")
    if url is not None and not isinstance(url, str):
        refuse(question, "tests.url is not a text")
    return url


def math_answer(question: Question) -> tuple[Node, ...]:
    """The readings of the reference."""
    read_settings(question, Settings)
    answer = needed_answer(question)
    try:
        return read(answer)
    except Unreadable as error:
        what = f"answer is {answer[:60]!r}, which cannot be read as a formula: {error}"
        refuse(question, what, "Correct the dataset's row, or use kind exact.")


def format_settings(question: Question) -> tuple[re.Pattern[str] | None, FormatSettings]:
    """What a reply must look like, and the pattern among it."""
    settings = read_settings(question, FormatSettings)
    if not settings.requires and not settings.pattern:
        refuse(question, "tests has neither requires nor pattern, so every response would be right")
    if not settings.pattern:
        return None, settings
    try:
        pattern, is_empty, _ = _pattern(settings.pattern, False, False)
    except (re.error, RecursionError, OverflowError) as error:
        refuse(question, f"tests.pattern is not a regular expression ({error})")
    if is_empty:
        refuse(question, f"tests.pattern is {settings.pattern[:60]!r}, a pattern that an empty answer satisfies")
    return pattern, settings


def judge_settings(question: Question) -> JudgeSettings:
    """The rubric by which a model judges replies. `answer` is a reference, if there is one."""
    settings = read_settings(question, JudgeSettings)
    if not settings.rubric.strip():
        refuse(question, "tests.rubric is empty")
    lowest, highest = settings.scale
    if not lowest < highest:
        refuse(question, f"tests.scale is [{lowest:g}, {highest:g}], whose second number is not the larger one")
    return settings


def needed_answer(question: Question) -> str:
    """`answer` without white space at its ends. Raises `QuestionError` if that leaves nothing."""
    answer = question.answer.strip()
    if not answer:
        refuse(question, f"answer is missing or empty, but kind {question.kind} needs one")
    return answer


FORMS: Final[dict[str, Callable[[Question], object]]] = {
    "mcq": mcq_letter,
    "tooluse": tool_calls,
    "recall": recall_facts,
    "exact": exact_texts,
    "regex": regex_pattern,
    "math": math_answer,
    "code": read_tests,
    "http": http_url,
    "format": format_settings,
    "judge": judge_settings,
}
"""The verifier's built-in kinds. A new one is an entry here and a module in `services.verifier.rewards`."""

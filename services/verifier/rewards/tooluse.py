"""Tool use: `Action: name` and `Action Input: {json}` pairs (method section 10).

The multiset of action names must be the answer's, and so must the merged inputs. The public scorer finds inputs by a
regular expression that ends at the first closing brace, so nested JSON never parses there; here a JSON decoder reads
from the first brace on. Action names are `\\w+` as there, but a name of the answer that is more than that (some rows
have one, such as "[Optional]updateProfile") is found as it stands.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from services.contracts.messages import Question
from services.verifier.rewards.registry import Judgement, QuestionError, register
from services.verifier.rewards.replies import CUT_OFF, settings, shorten

_INPUT: Final = re.compile(r"Action Input:\s*")
_DECODER: Final = json.JSONDecoder()
_MISSING: Final = object()


@dataclass(slots=True)
class Calls:
    """Tool calls: how often each action is named, and all inputs merged into one object (later ones win)."""

    actions: Counter[str] = field(default_factory=Counter)
    inputs: dict[str, Any] = field(default_factory=dict)
    num_inputs: int = 0
    num_unreadable: int = 0


@register("tooluse")
def judge_tooluse(question: Question, response_text: str, truncated: bool) -> Judgement:
    """Reward 1 where actions and merged inputs are the answer's, else 0 (or their share with `partial_credit`)."""
    expected = read_answer(question)
    found = read_reply(response_text, expected)
    try:
        wrong = [key for key in expected.inputs.keys() | found.inputs.keys() if not _same(key, expected, found)]
    except RecursionError:  # the reply nests deeper than any answer
        wrong = ["*"]
    correct = found.actions == expected.actions and not wrong
    reward = float(correct)
    if not correct and settings(question).get("partial_credit") is True:
        num_shared = (found.actions & expected.actions).total()
        num_keys = max(len(expected.inputs.keys() | found.inputs.keys()), 1)
        actions = num_shared / max(found.actions.total(), expected.actions.total(), 1)
        reward = (actions + (1 - min(len(wrong), num_keys) / num_keys)) / 2
    num_actions = found.actions.total()
    return Judgement(
        reward=reward,
        correct=correct,
        parsed_answer=shorten(f"{', '.join(sorted(found.actions.elements()))} {_show(found.inputs)}".strip(), 400),
        format_ok=num_actions > 0 and num_actions == found.num_inputs and not found.num_unreadable,
        feedback="" if correct else _feedback(expected, found, sorted(wrong), truncated),
    )


def read_answer(question: Question) -> Calls:
    """The calls that `question.answer` asks for: a JSON list of {"Action", "Action_Input"}.

    Raises:
        QuestionError: it is something else.
    """
    calls = Calls()
    try:
        for item in json.loads(question.answer):
            given = item["Action_Input"]
            calls.actions[str(item["Action"]).strip()] += 1
            calls.inputs |= json.loads(given) if isinstance(given, str) else given
            calls.num_inputs += 1
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise QuestionError(
            f'Question {question.id}: answer is not a JSON list of {{"Action", "Action_Input"}} ({error!r}).',
            remedy="Correct the dataset's row.",
        ) from error
    return calls


def read_reply(text: str, expected: Calls) -> Calls:
    """The calls in a reply. Inputs that are no JSON object are counted as unreadable and left out."""
    special = sorted((name for name in expected.actions if not re.fullmatch(r"\w+", name)), key=len, reverse=True)
    names = "".join(rf"{re.escape(name)}(?!\w)|" for name in special)
    calls = Calls(actions=Counter(re.findall(rf"Action:\s*({names}\w+)", text)))
    for match in _INPUT.finditer(text):
        calls.num_inputs += 1
        try:
            value, _ = _DECODER.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            calls.inputs |= value
        else:
            calls.num_unreadable += 1
    return calls


def _same(key: str, expected: Calls, found: Calls) -> bool:
    return bool(expected.inputs.get(key, _MISSING) == found.inputs.get(key, _MISSING))


def _feedback(expected: Calls, found: Calls, wrong: list[str], truncated: bool) -> str:
    """What differs: actions first, then unreadable inputs, then the first wrong input."""
    if not found.actions:
        return CUT_OFF if truncated else 'No action was found: write "Action: name" and "Action Input: {json}".'
    if found.actions != expected.actions:
        missing = ", ".join(sorted((expected.actions - found.actions).elements()))
        extra = ", ".join(sorted((found.actions - expected.actions).elements()))
        parts = [f"missing action: {missing}" if missing else "", f"wrong action: {extra}" if extra else ""]
        return shorten("; ".join(part for part in parts if part), 300)
    if found.num_unreadable:
        return "An Action Input is not a JSON object."
    key = wrong[0]
    if key not in expected.inputs:
        return f"Action Input should not have {_show(key)}."
    if key not in found.inputs:
        return f"Action Input lacks {_show(key)}: {_show(expected.inputs[key])}."
    return f"Action Input {_show(key)} should be {_show(expected.inputs[key])}, not {_show(found.inputs[key])}."


def _show(value: Any) -> str:
    try:
        return shorten(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError):
        return "(too deeply nested)"

"""Tool use: `Action: name` and `Action Input: {json}` pairs.

The multiset of action names and the merged inputs must both equal the answer's. The public scorer finds inputs with a
regular expression that ends at the first closing brace, so nested JSON never parses; here a JSON decoder reads from the
first brace, and what it has read is not searched for further calls. The public scorer ends a name at the first
character that is not `\\w`, so `get-weather` counts as `get`; here the name is the rest of its line before the next
part, without trailing punctuation.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.contracts.questions.forms import ToolCall, tool_calls
from services.contracts.strict_json import BadJsonError, read_json_at, same_json
from services.verifier.rewards.registry import register
from services.verifier.rewards.replies import CUT_OFF, shorten

_MARK: Final = re.compile(r"(Action|Action Input):\s*")
_NEXT_PART: Final = re.compile(r"(?:Thought|Action|Action Input|Observation|Final Answer):|\n|\Z")
_NOTHING: Final = re.compile(r"[^\S\n]*")
_PUNCTUATION: Final = ".,;:!?"
_MISSING: Final = object()


@dataclass(slots=True)
class Calls:
    """Tool calls: how often each action is named, and all inputs merged into one object (later ones win)."""

    actions: Counter[str] = field(default_factory=Counter)
    inputs: dict[str, Any] = field(default_factory=dict)
    num_inputs: int = 0
    has_unreadable: bool = False
    """Whether an input is not exactly one JSON object; it and all later inputs are ignored."""
    num_surplus: int = 0
    """Inputs that belong to no action before them."""


@register("tooluse")
def judge_tooluse(question: Question, response_text: str, truncated: bool) -> Judgement:
    """Reward 1 if actions and merged inputs equal the answer's, else 0 (or their share with `partial_credit`)."""
    asked, options = tool_calls(question)
    expected = merged(asked)
    found = read_reply(response_text, expected)
    keys = expected.inputs.keys() | found.inputs.keys()
    wrong = sorted(key for key in keys if not _same(key, expected, found))
    num_flaws = len(wrong) + found.has_unreadable + found.num_surplus
    correct = found.actions == expected.actions and not num_flaws
    reward = float(correct)
    if not correct and options.partial_credit:
        num_shared = (found.actions & expected.actions).total()
        actions = num_shared / max(found.actions.total(), expected.actions.total(), 1)
        num_parts = max(len(keys) + found.has_unreadable + found.num_surplus, 1)
        reward = (actions + (1 - num_flaws / num_parts)) / 2
    num_actions = found.actions.total()
    return Judgement(
        reward=reward,
        correct=correct,
        parsed_answer=shorten(f"{', '.join(sorted(found.actions.elements()))} {_show(found.inputs)}".strip(), 400),
        format_ok=num_actions > 0
        and num_actions == found.num_inputs
        and not (found.has_unreadable or found.num_surplus),
        feedback="" if correct else _feedback(expected, found, wrong, truncated),
    )


def merged(asked: Sequence[ToolCall]) -> Calls:
    """The calls that a row asks for."""
    calls = Calls(actions=Counter(call.action for call in asked), num_inputs=len(asked))
    for call in asked:
        calls.inputs |= call.inputs
    return calls


def read_reply(text: str, expected: Calls) -> Calls:
    """The calls in a reply. After the first unreadable input, no further inputs are read."""
    calls = Calls()
    position = 0
    while mark := _MARK.search(text, position):
        position = mark.end()
        if mark[1] == "Action":
            following = _NEXT_PART.search(text, position)
            name = text[position : following.start() if following else None].strip()
            position += len(name)
            calls.actions[name if name in expected.actions else name.rstrip(_PUNCTUATION)] += 1
            continue
        calls.num_inputs += 1
        calls.num_surplus += calls.num_inputs - calls.num_surplus > calls.actions.total()
        if calls.has_unreadable:
            continue
        try:
            value, end = read_json_at(text, position)
        except BadJsonError:
            calls.has_unreadable = True
            continue
        calls.has_unreadable = not isinstance(value, dict) or not _ends_at(text, end)
        if not calls.has_unreadable:
            calls.inputs |= value
            position = end
    return calls


def _ends_at(text: str, position: int) -> bool:
    """Whether there is only white space between `position` and the next part or the end of the line."""
    blank = _NOTHING.match(text, position)
    return _NEXT_PART.match(text, blank.end() if blank else position) is not None


def _same(key: str, expected: Calls, found: Calls) -> bool:
    return same_json(expected.inputs.get(key, _MISSING), found.inputs.get(key, _MISSING))


def _feedback(expected: Calls, found: Calls, wrong: list[str], truncated: bool) -> str:
    """The first difference: in the actions, then unreadable inputs, then the first wrong input."""
    if not found.actions:
        return CUT_OFF if truncated else 'No action was found: write "Action: name" and "Action Input: {json}".'
    if found.actions != expected.actions:
        missing = ", ".join(sorted((expected.actions - found.actions).elements()))
        extra = ", ".join(sorted((found.actions - expected.actions).elements()))
        parts = [f"missing action: {missing}" if missing else "", f"wrong action: {extra}" if extra else ""]
        return shorten("; ".join(part for part in parts if part), 300)
    if found.has_unreadable:
        return "An Action Input is not a JSON object and nothing else."
    if found.num_surplus:
        return "An Action Input belongs to no Action before it."
    key = wrong[0]
    if key not in expected.inputs:
        return f"Action Input should not have {_show(key)}."
    if key not in found.inputs:
        return f"Action Input lacks {_show(key)}: {_show(expected.inputs[key])}."
    return f"Action Input {_show(key)} should be {_show(expected.inputs[key])}, not {_show(found.inputs[key])}."


def _show(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False))

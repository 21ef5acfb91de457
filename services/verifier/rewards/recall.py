"""Recall: the reward of the embedded benchmark (examples/embedded/benchmark.py). Facts and total must be right.

`tests` is {"facts": {"coal": 21, ...}}, `answer` the total. The reply must be exactly
`<reasoning>...</reasoning><answer>N</answer>`, with every fact in the reasoning as `name=value`. The last value of each
fact counts, so that a reply may correct itself, but a list of all values earns nothing.
"""

from __future__ import annotations

import re
from typing import Final

from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.contracts.questions.forms import recall_facts
from services.verifier.rewards.registry import register
from services.verifier.rewards.replies import shorten, tagged_answer

_REPLY: Final = re.compile(r"<reasoning>(.*?)</reasoning><answer>([0-9]+)</answer>", re.DOTALL)


@register("recall")
def judge_recall(question: Question, response_text: str, truncated: bool) -> Judgement:
    """Reward 1 if form, facts and total are right, else 0 (or with `partial_credit` the share of facts and total).

    Feedback is "<name> should be <value>" for the first fact that is missing or wrong. It is empty if only form or
    total are wrong, because the embedded policy's vocabulary has no words for those.
    """
    wanted, options = recall_facts(question)
    facts = options.facts
    match = _REPLY.fullmatch(response_text)
    reasoning = match[1] if match else response_text
    mistakes = [name for name, value in facts.items() if not _says(reasoning, name, str(value))]
    total = match is not None and match[2].lstrip("0") == wanted.lstrip("0")
    correct = total and not mistakes
    reward = float(correct)
    if match is not None and not correct and options.partial_credit:
        reward = (len(facts) - len(mistakes) + total) / (len(facts) + 1)
    return Judgement(
        reward=reward,
        correct=correct,
        parsed_answer=shorten(match[2] if match else tagged_answer(response_text) or ""),
        format_ok=match is not None,
        feedback=f"{mistakes[0]} should be {facts[mistakes[0]]}" if mistakes else "",
    )


def _says(reasoning: str, name: str, value: str) -> bool:
    """Whether the last value that the text has for `name` is this one."""
    claims = re.findall(rf"\b{re.escape(name)}=([0-9]+)", reasoning)
    return bool(claims) and claims[-1].lstrip("0") == value.lstrip("0")

"""Finds the answer in a reply: in the answer tags, otherwise in the last box, otherwise at the end of the text.

Only one place counts. A tag or box that is cut off is not an answer, and an earlier one does not replace it, because
the model was already giving another answer.
"""

from __future__ import annotations

import re
from typing import Final

from services.contracts.questions.formulas.reader import read
from services.contracts.questions.formulas.spellings import word_set
from services.contracts.questions.formulas.tree import Unreadable
from services.contracts.questions.formulas.units import MULTIPLIERS
from services.contracts.questions.formulas.words import closing_brace
from services.verifier.rewards.replies import CLOSE, OPEN, tagged_answer

LONGEST_END: Final = 4000
"""Number of characters at the end of a reply without tags and boxes that are searched for an answer."""

_BOX: Final = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<brace>\{)|(?P<bare>-?[\d.]*\d)(?=[\s$.,]|\Z))?")
_JOINT: Final = re.compile(
    r"[\s$.\\(\)\[\]]*(?:,|;|and|or|, ?and|, ?or|\\text\{ ?(?:and|or) ?\}|\\quad)[\s$\\(\)\[\]]*"
)
_ITEM: Final = re.compile(
    r"\$\$(?P<display>.+?)\$\$|\\\[(?P<bracket>.+?)\\\]|\\\((?P<parenthesis>.+?)\\\)"
    r"|(?<![\\$\w])\$(?P<dollar>[^\s$]|[^\s$][^$\n]*?[^\s$\\])\$(?!\d)|(?P<stop>[,;.:!?]+(?=\s|\Z))"
    r"|(?P<plain>(?:\{[^{}\n]*\}|\S)+?(?=[,;.:!?]*(?:\s|\Z)))",
    re.DOTALL,
)
_BOLD: Final = re.compile(r"(?<!\S)\*\*(?=\S)|(?<=\S)\*\*(?=[\s.,;:!?)]|\Z)")
_ANNOUNCED: Final = re.compile(
    r"\banswer\b(?:[^.\n]{0,60}?\bis\b|\s*(?:\*\*)?\s*[=:]):?(?:\s*\*\*(?=\s))?", re.IGNORECASE
)
_SIGNS_ONLY: Final = re.compile(r"[-−+*/^=<>≤≥≠≈×÷·±√()|]+")
_LEAD: Final = re.compile(
    r"(?:\\text(?:bf|rm|it)?\{)?(?P<lead>[A-Za-z][A-Za-z' ,]{0,100})(?:\s(?:is|are|equals|was)(?: equal to)?\s*:?|:|=)"
    r"\s*\}?\s*(?P<inner>[-−+\d$\\(\[{√π∞.€£].{0,500})",
    re.DOTALL,
)
_DENIAL: Final = re.compile(
    r"(?i:\b(?:not|no|never|nor|neither|or|if|unless|except|without|least|most|more|less|greater|fewer|over|under|between)\b|n't)"
)
_DENIED: Final = re.compile(
    r"(?i:(?:\b(?:not|never|cannot|at least|at most|over|under|above|below|exceeds"
    r"|(?:more|less|fewer|greater|larger|smaller|bigger|higher|lower) than)|n['’]t)"
    r"(?: be| equals?| equal to| exactly| \w+ than)?)\s*\Z"
)
"""Words after which a number is not the answer."""
_CONTRAST: Final = re.compile(r"\Anot\b[^.\n]{0,60}?\bbut\s+", re.IGNORECASE)
_CHANGES_ITS_NUMBER: Final = frozenset(MULTIPLIERS) | word_set("""
    percent pct plus minus times over divided multiplied squared cubed factorial half halves modulo mod base
""")


def without_lead(text: str) -> str | None:
    """`text` without the words that lead to its value (`The total cost is $18`); None if there are no such words.

    Words that could negate or widen the value do not count as such.
    """
    match = _LEAD.fullmatch(text.strip())
    if match is None or _DENIAL.search(match["lead"]) or re.search(r"\b(?:is|are|equals|was)\b|[:=]", match["inner"]):
        return None
    return match["inner"]


def answer_of(reply: str) -> str | None:
    """The text of the reply's answer; None if it has none."""
    if OPEN in reply:
        tagged = tagged_answer(reply)
        if tagged is None:
            return None
        return boxed(tagged) if _BOX.search(tagged) else tagged
    if _BOX.search(reply):
        return boxed(reply)
    end = reply[-LONGEST_END:].rstrip()
    return None if CLOSE in end else _at_the_end(end)


def boxed(text: str) -> str | None:
    """The content of the last box, joined with those before a comma, `and` or `or`; None if there is none or it is cut
    off."""
    found: list[tuple[int, int, str]] = []
    position = 0
    while match := _BOX.search(text, position):
        if match["bare"]:
            end, content = match.end(), match["bare"]
        elif match["brace"] and (closing := closing_brace(text, match.end() - 1)) > 0:
            end, content = closing + 1, text[match.end() : closing]
        else:
            found.clear()
            return None
        found.append((match.start(), end, content))
        position = end
    if not found:
        return None
    chosen = [found[-1][2]]
    for (_, end, content), (start, _, _) in zip(found[-2::-1], found[:0:-1], strict=True):
        if not _JOINT.fullmatch(text, end, start):
            break
        chosen.insert(0, content)
    return " ; ".join(dict.fromkeys(chosen))


def _at_the_end(text: str) -> str | None:
    """What `answer is` announces, otherwise the last formula or number. A comma, `and` or `or` joins several."""
    text = _BOLD.sub("", text).strip()
    announced = [match.end() for match in _ANNOUNCED.finditer(text)]
    if not announced:
        last_line = text.rpartition("\n")[2]
        if _reads(last_line):
            return last_line
        runs = _runs(text)
        return runs[-1] if runs else None
    text = _CONTRAST.sub("", text[announced[-1] :].strip())
    sentence = re.split(r"\.(?:\s|\Z)|\n", text)[0].strip()
    runs = _runs(text)
    if not runs or _reads(sentence):
        return sentence or None
    return runs[0]


def _reads(text: str) -> bool:
    try:
        return not any(node.has("words") for node in read(text))
    except Unreadable:
        return False


def _runs(text: str) -> list[str]:
    """Formulas and numbers in a text, each with adjacent mathematics."""
    found: list[str] = []
    run: list[str] = []
    joint = denial = ""
    items = [*_ITEM.finditer(text), None]
    for item in items:
        shown = _mathematics(item)
        if shown is not None and item is not None:
            if not run:
                denied = _DENIED.search(text, max(0, item.start() - 40), item.start())
                denial = f"{denied[0]} " if denied else ""
            run += [joint] * bool(joint and run) + [shown]
            joint = ""
            continue
        written = item[0] if item is not None else ""
        if run and not joint and written.lower() in (",", ";", "and", "or", ", and"):
            joint = ";" if written in (",", ";") else f" {written} "
            continue
        if joint == ";" and written.lower() in ("and", "or"):
            continue
        if any(sign.isdigit() or sign in "π∞\\" for shown in run for sign in shown) or _has_a_formula(run):
            following = text[item.start() :].split(".")[0] if item is not None else ""
            found.append(denial + _with_what_changes_it(" ".join(run), written, following))
        run, joint = [], ""
    return found


def _has_a_formula(run: list[str]) -> bool:
    return any(shown.startswith(" ") for shown in run)


def _with_what_changes_it(run: str, word: str, following: str) -> str:
    """Include a word after the number that changes its value (`5 million`, `3 squared`)."""
    return f"{run} {following}" if word.lower() in _CHANGES_ITS_NUMBER else run


def _mathematics(item: re.Match[str] | None) -> str | None:
    """The mathematics in an item: a formula (after a space), a number, a sign or a letter."""
    if item is None or item["stop"] is not None:
        return None
    plain = item["plain"]
    if plain is None:
        return " " + str(item["display"] or item["bracket"] or item["parenthesis"] or item["dollar"])
    if any(sign.isdigit() or sign in "π∞" for sign in plain) or _SIGNS_ONLY.fullmatch(plain):
        return plain
    return plain if len(plain) == 1 and plain.isalpha() and plain not in "aAI" else None

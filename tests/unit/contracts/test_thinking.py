"""Where a response's thinking ends and its answer begins, for every way in which models write or forget markers."""

from __future__ import annotations

import pytest

from services.contracts.thinking import CLOSE, OPEN, thinking_end, without_thinking


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think>b<think>c</think> d", "bd"),
        ("thoughts without start</think>answer", "answer"),
        ("answer <think>never closed", "answer"),
        ("<think>\nlong\n</think>\n\nanswer", "answer"),
        ("answer", "answer"),
        ("<think>the answer is 4", ""),
        ("<think>the answer is 4</think>\n", ""),
        ("the answer is 4</think>", ""),
        ("<think>a<think>b</think>c</think>d", "d"),
    ],
)
def test_thinking_is_left_out(text: str, left: str) -> None:
    assert without_thinking(text) == left


@pytest.mark.parametrize(
    ("text", "opened", "answer"),
    [
        ("<think>a</think> 4", False, " 4"),
        ("a</think> 4", True, " 4"),
        ("a</think> 4", False, " 4"),
        ("4", False, "4"),
        ("so 4", True, None),
        ("<think>so 4", False, None),
        ("<think>a</think>3<think>b</think>4", False, "4"),
        ("<think>a</think>3<think>b", False, None),
        ("a</think>b</think>4", True, "4"),
        ("<think>a</think>", False, ""),
        ("", True, None),
        ("", False, ""),
    ],
)
def test_the_answer_follows_the_last_thinking(text: str, opened: bool, answer: str | None) -> None:
    for opening, closing in ((OPEN, CLOSE), ("[THINK]", "[/THINK]")):
        written = text.replace(OPEN, opening).replace(CLOSE, closing)
        end = thinking_end(written, opening, closing, opened=opened)
        assert (None if end is None else written[end:]) == answer

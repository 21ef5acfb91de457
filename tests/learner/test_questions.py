"""Datasets: what a person gets told about a bad one, and the order in which a run goes through a good one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.errors import ConfigurationError
from services.learner.questions import load_questions, question_index

GOOD = json.dumps({"kind": "mcq", "prompt": "Which?", "answer": "A"})


def test_reads_rows_and_fills_in_what_is_optional(write_lines: Callable[..., Path]) -> None:
    full = json.dumps({"id": "q", "kind": "tooluse", "system": "s", "prompt": "p", "answer": [1], "tests": {"a": 1}})
    first, second = load_questions(str(write_lines(GOOD, "", full)))
    assert (first.id, first.kind, first.system, first.tests) == ("0", "mcq", "", "")
    assert (second.id, second.answer, json.loads(second.tests)) == ("q", "[1]", {"a": 1})


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((GOOD, "{oops"), "line 2: not valid JSON"),
        ((GOOD, "", '{"kind": "mcq"}'), "line 3: the field prompt is missing"),
        (("[1]",), "line 1: not a JSON object"),
        ((), "holds no questions"),
        (('{"id": "a", "kind": "k", "prompt": "p"}',) * 2, "more than one question with id 'a'"),
    ],
)
def test_says_what_is_wrong_and_where(write_lines: Callable[..., Path], lines: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_questions(str(write_lines(*lines)))
    assert says in caught.value.message
    assert caught.value.remedy


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.jsonl cannot be read"):
        load_questions("nowhere.jsonl")


def test_limit_keeps_the_first(write_lines: Callable[..., Path]) -> None:
    assert len(load_questions(str(write_lines(GOOD, GOOD, "not json")), limit=2)) == 2


@given(num_questions=st.integers(1, 40), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_each_epoch_has_every_question_once(num_questions: int, seed: int, epoch: int) -> None:
    positions = range(epoch * num_questions, (epoch + 1) * num_questions)
    seen = Counter(question_index(position, num_questions, seed, True) for position in positions)
    assert seen == Counter(range(num_questions))


def test_epochs_differ_and_repeat() -> None:
    orders = [[question_index(e * 50 + i, 50, 7, True) for i in range(50)] for e in range(2)]
    assert orders[0] != orders[1]
    assert [question_index(i, 50, 7, True) for i in range(50)] == orders[0]
    assert [question_index(i, 50, 7, False) for i in range(3)] == [0, 1, 2]


def test_a_folder_with_the_name_of_a_dataset_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is asked, which is out of reach here; nothing beside the learner is taken in its place."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "folder", tmp_path / "folder" / "sub"):
        (place / "train.jsonl").write_text(GOOD + "\n")
    for source in ("hub:..", "hub:../..", "hub:folder", "hub:folder/..", "hub:json", "hub:folder/sub"):
        with pytest.raises(ConfigurationError, match=r"cannot be loaded|is not hub:|which is not"):
            load_questions(source)

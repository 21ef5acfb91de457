"""Datasets: the error for a bad one, and the order in which a run uses a good one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from services.contracts.errors import ConfigurationError
from services.contracts.run_config import RunConfig, parse_run_config
from services.learner.groups.questions import load_datasets, load_questions, question_index


def row(**fields: object) -> str:
    return json.dumps({"kind": "mcq", "prompt": "Which?", "answer": "A"} | fields)


GOOD = row()


def test_reads_rows_and_fills_in_what_is_optional(write_lines: Callable[..., Path]) -> None:
    full = json.dumps({"id": "q", "kind": "own", "system": "s", "prompt": "p", "answer": [1], "tests": {"a": 1}})
    first, second = load_questions(str(write_lines(GOOD, "", full)))
    assert (first.id, first.kind, first.system, first.tests) == ("0", "mcq", "", "")
    assert (second.id, second.answer, json.loads(second.tests)) == ("q", "[1]", {"a": 1})


def test_solutions_are_kept_only_for_a_teacher_that_reads_them(write_lines: Callable[..., Path]) -> None:
    path = str(write_lines(GOOD, row(solution="First, A.")))

    def config(demonstration: str, train: str = path) -> RunConfig:
        data = {"train": train, "validation": path}
        values = {"name": "r", "model": {"path": "m"}, "data": data, "training": {"steps": 1}}
        return parse_run_config(values | {"objective": {"demonstration": demonstration}})

    train, validation = load_datasets(config("reference"))
    assert [question.solution for question in train] == [UNSET, "First, A."]
    assert {question.solution for question in [*validation, *load_datasets(config("first"))[0]]} == {UNSET}
    with pytest.raises(ConfigurationError, match=r"no row of .* has a solution") as caught:
        load_datasets(config("reference", str(write_lines(GOOD))))
    assert caught.value.field == "objective.demonstration"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((GOOD, "{oops"), "line 2: not valid JSON"),
        ((GOOD, "", '{"kind": "mcq"}'), "line 3: the field prompt is missing"),
        (("[1]",), "line 1: not a JSON object"),
        ((), "contains no questions"),
        (('{"id": "a", "kind": "k", "prompt": "p"}',) * 2, "line 2: the id 'a' is already used"),
        ((row(prompt=[{"role": "user", "content": "Which?"}]),), "line 1: the field prompt is a list"),
        ((row(prompt="\ud800"),), "line 1: the field prompt is invalid: it contains '\\ud800'"),
        ((row(kind="own", tests={"a": ["\ud800"]}),), "line 1: the field tests is invalid: it contains '\\ud800'"),
        (('{"kind": "math", "prompt": "p", "answer": %s}' % ("9" * 5000),), "line 1: the field answer is invalid"),
        (('{"kind": "math", "prompt": "p", "answer": NaN}',), "line 1: the field answer is invalid"),
        (('{"kind": "code", "prompt": "p", "tests": %s}' % ("[" * 100_000 + "]" * 100_000),), "line 1: not valid JSON"),
        ((row(kind="code", tests="[" * 100_000 + "]" * 100_000),), "line 1: Question 0: tests do not read as code"),
        (('{"kind": "mcq", "prompt": "p", "answer": "A", "answer": "B"}',), "has the field 'answer' twice"),
        ((row(kind="MCQ"),), "line 1: Question 0: kind is 'MCQ'"),
        ((row(kind=1),), "line 1: the field kind is a number"),
        ((row(prompt=" "),), "line 1: the field prompt is missing or empty"),
        ((row(answer=None),), "line 1: Question 0: answer is missing or empty"),
        ((row(answer=2),), "line 1: Question 0: answer is '2', not the capital letter"),
        ((row(kind="exact", tests={"ignorecase": True}),), "unknown field `ignorecase`"),
        ((row(kind="math", answer=r"\frac{1}{"),), r"line 1: Question 0: answer is '\\frac{1}{', which cannot be read"),
    ],
)
def test_a_bad_row_is_reported_with_file_line_and_field(
    write_lines: Callable[..., Path], lines: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_questions(str(write_lines(*lines)))
    assert says in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("pattern", [r"Answer: (\d+)*!", r"^(ab|a|b)+$", "(?:a?|b?){60}z"])
def test_patterns_that_take_exponential_time_are_refused(write_lines: Callable[..., Path], pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=r"line 2: Question 1: answer is .* exponential time"):
        load_questions(str(write_lines(GOOD, row(kind="regex", answer=pattern))))


@pytest.mark.parametrize("pattern", [r"^(\d+,)*\d+$", r"(foo|bar)+", r"^([A-Z][a-z]+ )+$", r"(\d{3}-)+\d{4}"])
def test_patterns_with_repeated_groups_are_accepted(write_lines: Callable[..., Path], pattern: str) -> None:
    assert load_questions(str(write_lines(row(kind="regex", answer=pattern))))[0].answer == pattern


def test_numbers_keep_their_spelling(write_lines: Callable[..., Path]) -> None:
    numbers = ["0.00005", "1.50", "12", "6.0e23"]
    lines = (f'{{"kind": "exact", "prompt": "p", "answer": {number}}}' for number in numbers)
    assert [found.answer for found in load_questions(str(write_lines(*lines)))] == numbers


def test_bytes_that_are_not_utf_8_are_named_by_line_and_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\n" + GOOD.encode().replace(b"Which", b"\xe9"))
    with pytest.raises(ConfigurationError, match="line 2: not UTF-8"):
        load_questions(str(path))
    assert load_questions(str(path), limit=1)[0].answer == "A"


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


def test_a_tables_padding_is_not_mistaken_for_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of objects has all fields in every row, null where a row had none."""
    import datasets

    rows = [
        {"kind": "exact", "prompt": "p", "answer": "x", "tests": {"ignore_case": True}},
        {"kind": "exact", "prompt": "p", "answer": "x", "tests": {"where": "reply"}},
        {"kind": "mcq", "prompt": "p", "answer": "A", "tests": None},
    ]
    table = datasets.Dataset.from_list(rows)
    assert table[0]["tests"] == {"ignore_case": True, "where": None}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: table)
    found = load_questions("hub:owner/name")
    assert [json.loads(question.tests or "{}") for question in found] == [row["tests"] or {} for row in rows]


def test_a_folder_with_the_name_of_a_dataset_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub, which is unreachable here, is asked; no local folder replaces it."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "folder", tmp_path / "folder" / "sub"):
        (place / "train.jsonl").write_text(GOOD + "\n")
    for source in ("hub:..", "hub:../..", "hub:folder", "hub:folder/..", "hub:json", "hub:folder/sub"):
        with pytest.raises(ConfigurationError, match=r"cannot be loaded|is not hub:|which is not"):
            load_questions(source)

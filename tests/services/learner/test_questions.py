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
from services.contracts.messages import Question
from services.contracts.questions.source import Source
from services.contracts.run_config import RunConfig, parse_run_config
from services.learner.groups.questions import Mixture, Pool, load_datasets, question_index
from services.learner.groups.questions import load_questions as load_source


def load_questions(path: object, limit: int | None = None) -> list[Question]:
    return load_source(Source(path=str(path), limit=limit))


def row(**fields: object) -> str:
    return json.dumps({"kind": "mcq", "prompt": "Which?", "answer": "A"} | fields)


GOOD = row()


def test_reads_rows_and_fills_in_what_is_optional(write_lines: Callable[..., Path]) -> None:
    full = json.dumps({"id": "q", "kind": "own", "system": "s", "prompt": "p", "answer": [1], "tests": {"a": 1}})
    first, second = load_questions(write_lines(GOOD, "", full))
    assert (first.id, first.kind, first.system, first.tests) == ("0", "mcq", "", "")
    assert (second.id, second.answer, json.loads(second.tests)) == ("q", "[1]", {"a": 1})


def test_solutions_are_kept_only_for_a_teacher_that_reads_them(write_lines: Callable[..., Path]) -> None:
    path = str(write_lines(GOOD, row(solution="First, A.")))

    def config(demonstration: str, train: str = path) -> RunConfig:
        data = {"train": train, "validation": path}
        values = {"name": "r", "model": {"path": "m"}, "data": data, "training": {"steps": 1}}
        return parse_run_config(values | {"objective": {"demonstration": demonstration}})

    train, [(_, validation)] = load_datasets(config("reference"))
    assert {train.at(number).solution for number in range(2)} == {UNSET, "First, A."}
    other = load_datasets(config("first")).train
    assert {question.solution for question in [*validation, other.at(0), other.at(1)]} == {UNSET}
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
        ((row(kind="code", tests="[" * 100_000 + "]" * 100_000),), "line 1: Question 0: tests are not valid code"),
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
        load_questions(write_lines(*lines))
    assert says in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("pattern", [r"Answer: (\d+)*!", r"^(ab|a|b)+$", "(?:a?|b?){60}z"])
def test_patterns_that_take_exponential_time_are_refused(write_lines: Callable[..., Path], pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=r"line 2: Question 1: answer is .* exponential time"):
        load_questions(write_lines(GOOD, row(kind="regex", answer=pattern)))


@pytest.mark.parametrize("pattern", [r"^(\d+,)*\d+$", r"(foo|bar)+", r"^([A-Z][a-z]+ )+$", r"(\d{3}-)+\d{4}"])
def test_patterns_with_repeated_groups_are_accepted(write_lines: Callable[..., Path], pattern: str) -> None:
    assert load_questions(write_lines(row(kind="regex", answer=pattern)))[0].answer == pattern


def test_numbers_keep_their_spelling(write_lines: Callable[..., Path]) -> None:
    numbers = ["0.00005", "1.50", "12", "6.0e23"]
    lines = (f'{{"kind": "exact", "prompt": "p", "answer": {number}}}' for number in numbers)
    assert [found.answer for found in load_questions(write_lines(*lines))] == numbers


def test_bytes_that_are_not_utf_8_are_named_by_line_and_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\n" + GOOD.encode().replace(b"Which", b"\xe9"))
    with pytest.raises(ConfigurationError, match="line 2: not UTF-8"):
        load_questions(path)
    assert load_questions(path, limit=1)[0].answer == "A"


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.jsonl cannot be read"):
        load_questions("nowhere.jsonl")


def test_limit_keeps_the_first(write_lines: Callable[..., Path]) -> None:
    assert len(load_questions(write_lines(GOOD, GOOD, "not json"), limit=2)) == 2


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


EARLIER_ORDER = [1, 3, 0, 2, 1, 3, 0, 2]
"""Of four questions with seed 3, in two epochs."""


def questions_of(name: str, count: int) -> list[Question]:
    return [Question(id=f"{name}/{n}", kind="own", prompt="p") for n in range(count)]


def test_a_mixture_keeps_its_shares_and_uses_each_question_once_an_epoch() -> None:
    mixture = Mixture([Pool("a", 0.75, questions_of("a", 6)), Pool("b", 0.25, questions_of("b", 50))], 7, True)
    order = [mixture.at(n).id for n in range(80)]
    first, second = [id for id in order if id[0] == "a"], [id for id in order if id[0] == "b"]
    assert (len(first), len(second)) == (60, 20)
    assert all(Counter(first[start : start + 6]) == Counter(f"a/{n}" for n in range(6)) for start in range(0, 60, 6))
    assert len(set(second)) == 20
    assert [mixture.at(n).id for n in (79, 3, 40)] == [order[n] for n in (79, 3, 40)], "of the number alone"


def test_one_source_is_used_in_the_order_of_earlier_versions() -> None:
    """The position is all that checkpoints and queues of stored runs have."""
    mixture = Mixture.of(questions_of("", 4), seed=3)
    assert [mixture.at(n).id for n in range(8)] == [f"/{question_index(n, 4, 3, True)}" for n in range(8)]
    assert [question_index(n, 4, 3, True) for n in range(8)] == EARLIER_ORDER


def test_sources_and_sets_are_loaded_with_names(write_lines: Callable[..., Path]) -> None:
    path = str(write_lines(GOOD, GOOD, GOOD))
    data = {
        "train": [{"path": path, "name": "x"}, {"path": path, "name": "y", "limit": 1, "weight": 2}],
        "validation": [{"path": path, "name": "v", "limit": 2}, {"path": path}],
    }
    found = load_datasets(
        parse_run_config({"name": "r", "model": {"path": "m"}, "data": data, "training": {"steps": 1}})
    )
    assert Counter(found.train.at(n).id for n in range(9)) == {"x/0": 1, "x/1": 1, "x/2": 1, "y/0": 6}
    assert [(item.label, len(questions)) for item, questions in found.validation] == [("v", 2), (Path(path).stem, 3)]


def test_a_hub_source_names_configuration_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = {}

    def load(path: str, **options: object) -> list[dict[str, str]]:
        asked.update(options, path=path)
        return [{"question": "1 + 1?", "answer": "Two.\n#### 2"}] * 9

    monkeypatch.setattr(datasets, "load_dataset", load)
    columns = {"prompt": "question", "answer": "answer|after:####"}
    place = {"path": "hub:o/n", "configuration": "main", "split": "test", "revision": "v2"}
    source = Source.model_validate(place | {"limit": 2, "kind": "math", "columns": columns})
    assert [item.answer for item in load_source(source)] == ["2", "2"]
    assert asked == {
        "path": "hf://datasets/o/n",
        "name": "main",
        "split": "test",
        "revision": "v2",
        "streaming": True,
    }

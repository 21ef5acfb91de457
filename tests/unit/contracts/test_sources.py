"""Sources: files of every format, columns as published, and the error for each that is wrong."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.data import DataSection, main_split
from services.contracts.errors import ConfigurationError
from services.contracts.questions import formats
from services.contracts.questions.columns import column, evaluate, parse_expression
from services.contracts.questions.reading import check_source, read_source
from services.contracts.questions.schedule import Schedule, whole_weights
from services.contracts.questions.source import Source
from services.contracts.questions.transforms import ColumnError
from services.contracts.run_config import parse_run_config
from services.contracts.run_file import check, read_run_text

ROWS = [{"kind": "exact", "prompt": f"Name\nthe {n}th, please", "answer": f"{n}.50"} for n in range(3)]
FILE = """name: x
model: {path: m}
training: {steps: 1}
data:
  train:
    - path: a.jsonl
      columns:
        answer: "solution|aftr:####"
    - {path: b.jsonl, weight: 0}
  validation:
    - {path: c.jsonl, every: 3}
"""


def as_csv(rows: list[dict[str, str]]) -> str:
    cells = [list(rows[0]), *(row.values() for row in rows)]
    return "\r\n".join(",".join(f'"{cell}"' for cell in line) for line in cells) + "\r\n"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_has_the_same_questions(tmp_path: Path, ending: str, packed: bool) -> None:
    path = tmp_path / f"data{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        lines = "\n".join(map(json.dumps, ROWS))
        path.write_text({".json": json.dumps(ROWS, indent=1), ".csv": as_csv(ROWS)}.get(ending, lines))
    if packed:
        path = path.rename(f"{path}.gz")
        path.write_bytes(gzip.compress(path.read_bytes()))
    found = [question for _, question in read_source(Source(path=str(path)))]
    assert [(item.id, item.prompt, item.answer) for item in found] == [
        (str(n), row["prompt"], row["answer"]) for n, row in enumerate(ROWS)
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.json",
            b'[{"kind": "exact", "prompt": "p",\n "answer": "x"},\n\n {"kind": 1}]',
            "a.json, line 4: the field",
        ),
        ("a.json", b'[{"kind": "exact"} {}]', "a.json, line 1: not valid JSON"),
        ("a.json", b'[{"kind": "exact", "prompt": "p", "answer": "x"}', "neither a comma nor the end"),
        ("a.csv", b'kind,prompt,answer\nexact,"two\nlines",x\nexact,p\n', "a.csv, line 4: 2 cells for 3 columns"),
        ("a.csv", b"kind,kind\n", "the column 'kind' is given twice"),
        ("a.csv", b"kind,prompt\nexact,\xff\n", "not CSV in UTF-8"),
        ("a.parquet", b"PAR1 no table", "not a Parquet file"),
        ("a.jsonl.gz", b"{}", "not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99)[:-9], "not a complete gzip file"),
    ],
)
def test_a_damaged_file_is_reported_with_its_place(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    source = Source(path=str(tmp_path / name))
    error = check_source(source, 60).error("data.train")
    assert error is not None
    assert says in error.message
    with pytest.raises(ConfigurationError, match=r"line|not a"):
        list(read_source(source))


def test_parquet_is_left_to_the_learner_where_nothing_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    found = check_source(Source(path=str(tmp_path / "a.parquet")), 60)
    assert (found.num_rows, found.whole, found.faults) == (0, False, [])
    assert "pyarrow" in found.unread


CASES = '[{"input": "[1]\\n2", "output": "3", "testtype": "functional"}]'
PACKED = base64.b64encode(zlib.compress(pickle.dumps(CASES)))
ROW: dict[str, Any] = {
    "solution": "6 * 7 = 42\n#### not this\n#### 1,042 ",
    "boxed": r"So \boxed{1} or \boxed{\frac{1}{2}}.",
    "choices": {"text": ["iron", "gold"], "label": ["A", "B"]},
    "index": 1,
    "list": ["a", "b"],
    "asserts": ["assert add(1, [2]) == (3, 'x')"],
    "meta": '{"name": "add"}',
    "cases": '[{"input": "1\\n", "output": "2\\n", "testtype": "stdin"}]',
    "packed": PACKED.decode(),
    "steps": [[["find", '{"q": 1}', "log"], "found"]],
    "none": None,
}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("solution|after:####", "1,042"),
        ("solution|before:=|after:*", "7"),
        ("solution|after:####|lower|strip", "1,042"),
        ("boxed|boxed", r"\frac{1}{2}"),
        ("choices|options", "A) iron\nB) gold"),
        ("choices.text|options", "A) iron\nB) gold"),
        ("choices.text.1", "gold"),
        ("index|letter", "B"),
        ("list|join", "a\nb"),
        ("list|join:, ", "a, b"),
        ("list|json", '["a", "b"]'),
        ("meta|json", {"name": "add"}),
        ("=Answer: a|b", "Answer: a|b"),
        ("none|strip", None),
        (("solution|after:####", "=\n", "none", "choices|options"), "1,042\nA) iron\nB) gold"),
        ("asserts|asserts", [{"call": "add", "args": [1, [2]], "expected": [3, "x"]}]),
        ("cases|cases", [{"stdin": "1\n", "stdout": "2\n"}]),
        ("packed|unpack|cases:meta.name", [{"call": "add", "args": [[1], 2], "expected": 3}]),
        (
            ("cases|cases", "packed|unpack|cases:meta.name"),
            [{"stdin": "1\n", "stdout": "2\n"}, {"call": "add", "args": [[1], 2], "expected": 3}],
        ),
        ("steps|calls", [{"Action": "find", "Action_Input": '{"q": 1}'}]),
    ],
)
def test_expressions(expression: str | tuple[str, ...], value: Any) -> None:
    assert evaluate(expression, ROW) == value


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("solutoin", "there is no column 'solutoin' .*perhaps solution is meant"),
        ("choices.texts", "there is no 'texts'"),
        ("solution|after:@@", "'@@' does not occur"),
        ("solution|boxed", "there is no"),
        ("solution|letter", "not the index of an option"),
        ("solution|join", "not JSON"),
        ("index|join", "not a list"),
        ("list|strip", "not a text"),
        ("solution|unpack", "not packed cases"),
        ("packed|unpack|cases", "write cases:COLUMN"),
        (("list", "solution"), "add |join"),
        ("meta|cases", "not a list"),
    ],
)
def test_a_row_without_the_value_is_reported(expression: str | tuple[str, ...], says: str) -> None:
    with pytest.raises(ColumnError, match=says.replace("|", r"\|")):
        evaluate(expression, ROW)


def test_packed_cases_cannot_run_anything() -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("called",)

    row = {"x": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()}
    with pytest.raises(ColumnError, match=r"contains builtins\.print"):
        evaluate("x|unpack", row)


@given(st.text(max_size=40))
def test_no_text_breaks_the_parser_of_expressions(text: str) -> None:
    try:
        parse_expression(text)
        column({"a": 1}, text)
    except ColumnError:
        pass


def test_items_filters_defaults_and_limits(tmp_path: Path) -> None:
    rows = [
        {"topic": "metals", "level": 2, "ask": ["Fe?", "Au?"], "say": ["iron", "gold"]},
        {"topic": "gases", "level": 2, "ask": ["H?"], "say": ["hydrogen"]},
        {"topic": "metals", "level": 3, "ask": ["Ag?"], "say": ["silver"]},
        {"topic": "metals", "level": 2, "ask": ["Cu?", "Zn?"], "say": ["copper", "zinc"]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Source(
        path=str(tmp_path / "a.jsonl"),
        kind="exact",
        system="Be brief.",
        columns={"prompt": "ask", "answer": "say"},
        rows=("ask", "say"),
        where={"topic": ("metals", "salts"), "level": "2"},
        limit=3,
    )
    found = list(read_source(source))
    assert [(item.prompt, item.answer, item.system) for _, item in found] == [
        (prompt, answer, "Be brief.") for prompt, answer in (("Fe?", "iron"), ("Au?", "gold"), ("Cu?", "copper"))
    ]
    places = [place.rpartition("a.jsonl, ")[2] for place, _ in found]
    assert places == ["line 1, item 1", "line 1, item 2", "line 4, item 1"]


def test_invalid_rows_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"q": q, "a": a}) for q, a in (("1?", "#1"), ("2?", "2"), ("3?", "#3"))))
    source = Source(path=str(path), kind="exact", columns={"prompt": "q", "answer": "a|after:#"})
    error = check_source(source, 60).error("data.train.0")
    assert error is not None
    assert error.message == f"{path}, line 2: columns.answer (a|after:#): after: '#' does not occur in '2'."
    assert error.remedy.startswith("Correct `columns`")
    kept = source.model_copy(update={"invalid_rows": "skip"})
    found = check_source(kept, 60)
    assert (found.num_rows, found.num_skipped, found.faults) == (3, 1, [])
    assert [item.prompt for _, item in read_source(kept)] == ["1?", "3?"]
    path.write_text(json.dumps({"q": "1?", "a": "1"}))
    with pytest.raises(ConfigurationError, match="does not occur"):
        list(read_source(kept))


def test_errors_of_a_run_file_have_the_line_of_the_source() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(read_run_text(FILE, "run.yaml"))
    assert [line.split(": ")[0] for line in caught.value.message.splitlines()] == [
        f"run.yaml, line {number}" for number in (8, 9, 11)
    ]
    for words in ("no transform 'aftr' (perhaps after", "data.train.1.weight is 0", "every_steps is meant"):
        assert words in caught.value.message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"train": None}, "data.train is None: must be a file, a hub name, or a list"),
        ({"train": 3}, "data.train is 3: must be a file, a hub name, or a list"),
        ({"train": "t.jsonl", "validation": []}, "must have 1 to 16 sections"),
        ({"train": []}, "data.train is []"),
        ({"train": 3}, "must be a file, a hub name, or a list"),
        ({"train": [{"path": "a", "split": "test"}]}, "data.train.0.split is test, but a is a file"),
        ({"train": [{"path": "hub:a/b:test", "split": "test"}]}, "already names a split"),
        ({"train": [{"path": "x/a.csv"}, {"path": "y/a.csv"}]}, "data.train.1.name is 'a', as another one's"),
        ({"train": [{"path": "a"}], "max_train_questions": 3}, "set the limit of each source"),
        ({"train": [{"path": "a", "weight": 0.3333333}, {"path": "b"}]}, "use fewer digits"),
        ({"train": "t", "validation": [{"path": "a", "name": "a b"}]}, "data.validation.0.name is 'a b'"),
        ({"train": [{"path": "a", "columns": {"question": "q"}}]}, "data.train.0.columns.question"),
        ({"train": [{"path": "a", "columns": {"prompt": ["q", "a|after"]}}]}, "write after:TEXT"),
    ],
)
def test_a_wrong_source_is_named_with_the_remedy(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_run_config({"name": "x", "model": {"path": "m"}, "training": {"steps": 1}, "data": data})
    assert says in caught.value.message
    assert str(caught.value.field).startswith("data.")


def test_one_path_stays_what_it_was() -> None:
    values = {"train": "t.jsonl", "validation": "v.jsonl", "max_train_questions": 5, "shuffle": True}
    section = DataSection.model_validate(values)
    assert section.model_dump(mode="json") == values | {"curriculum": None}
    assert [(field, source.path, source.limit) for field, source in section.files()] == [
        ("data.train", "t.jsonl", 5),
        ("data.validation", "v.jsonl", None),
    ]
    assert main_split({"data": values}) == "validation"


def test_stored_sets_have_their_names() -> None:
    sets = [{"path": "d/amc.jsonl.gz"}, {"path": "hub:o/x-y:test"}]
    section = DataSection.model_validate({"train": "t", "validation": sets})
    stored = section.model_dump(mode="json")
    assert [item["name"] for item in stored["validation"]] == ["amc", "x-y"]
    assert main_split({"data": stored}) == "amc"
    assert DataSection.model_validate(stored) == section


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_shares_hold_at_every_prompt(weights: list[int]) -> None:
    schedule = Schedule([float(weight) for weight in weights])
    counts = [0] * len(weights)
    for sequence in range(2 * schedule.period + 3):
        source, before = schedule.at(sequence)
        assert before == counts[source], "each source's own position, without gaps"
        counts[source] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - (sequence + 1) * weight / sum(weights)) < 1


def test_weights_are_as_written() -> None:
    assert whole_weights([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert whole_weights([4.0, 2.0]) == [2, 1]
    assert Schedule([1.0]).period == 1


def test_a_json_list_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LARGEST_WHOLE", 10)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with pytest.raises(ConfigurationError, match="Write it as JSON lines"):
        list(read_source(Source(path=str(tmp_path / "a.json"))))


USER, REPLY = {"role": "user", "content": "Coal?"}, {"role": "assistant", "content": "3."}
CHAT = [{"role": "system", "content": "Be brief."}, USER, REPLY, {"role": "user", "content": "Iron?", "name": None}]


def questions_of(tmp_path: Path, row: dict[str, Any], **source: Any) -> list[Any]:
    (tmp_path / "chats.jsonl").write_text(json.dumps({"kind": "exact", "answer": "2"} | row))
    return [question for _, question in read_source(Source(path=str(tmp_path / "chats.jsonl"), **source))]


@pytest.mark.parametrize(
    ("row", "source"),
    [
        ({"messages": CHAT}, {}),
        ({"messages": json.dumps(CHAT)}, {}),
        ({"messages": CHAT, "prompt": None}, {"system": "not this one"}),
        ({"chat": {"turns": CHAT}}, {"columns": {"messages": "chat.turns"}}),
        ({"prompt": CHAT}, {"columns": {"messages": "prompt"}}),
        ({"messages": CHAT[1:], "system": "Be brief."}, {}),
    ],
)
def test_the_last_message_is_the_prompt_and_the_rest_its_history(
    tmp_path: Path, row: dict[str, Any], source: dict[str, Any]
) -> None:
    (question,) = questions_of(tmp_path, row, **source)
    assert (question.system, question.prompt) == ("Be brief.", "Iron?")
    assert [(turn.role, turn.content) for turn in question.turns] == [("user", "Coal?"), ("assistant", "3.")]


def test_a_prompt_is_used_before_messages_that_happen_to_be_there(tmp_path: Path) -> None:
    (question,) = questions_of(tmp_path, {"prompt": "Iron?", "messages": [USER, REPLY]})
    assert (question.prompt, question.turns) == ("Iron?", ())


def test_parquet_has_the_same_conversations(tmp_path: Path) -> None:
    path = tmp_path / "chats.parquet"
    rows = [{"kind": "exact", "answer": "2", "messages": [{"role": t["role"], "content": t["content"]} for t in CHAT]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    ((_, question),) = read_source(Source(path=str(path)))
    assert (question.system, len(question.turns), question.prompt) == ("Be brief.", 2, "Iron?")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "the field messages has 0 items, but must be a list of 1 to 10,000 messages"),
        ("[oops", "the field messages is not JSON"),
        ({"role": "user"}, "the field messages is \"{'role': 'user'}\""),
        (["Coal?"], "message 1 is 'Coal?', not an object"),
        ([{"role": "human", "content": "x"}], "message 1: role is 'human', but must be system, user or assistant"),
        ([USER, REPLY], "the last message is from 'assistant', but must be from 'user'"),
        ([CHAT[0]], "the last message is missing"),
        ([USER, CHAT[0], USER], "message 2 is a system message, which must be the first"),
        ([USER, {"role": "user", "content": "  "}], "the last message is empty"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1: content is"),
        ([USER | {"tool_calls": [{"id": 1}]}], "message 1 has 'tool_calls', which no chat template would be given"),
    ],
)
def test_wrong_messages_are_named_with_line_and_remedy(tmp_path: Path, messages: Any, says: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n" + json.dumps({"kind": "exact", "answer": "2", "messages": messages}))
    error = check_source(Source(path=str(path)), 60.0).error("data.train")
    assert error is not None
    assert error.message.startswith(f"{path}, line 2: ")
    assert says in error.message
    assert error.remedy.startswith('Write messages as [{"role": "user"')

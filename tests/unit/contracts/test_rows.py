"""Checks of a data file before a run: every fault with its place, the first of them told, within a limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.contracts.questions import reading
from services.contracts.questions.check_rows import __name__ as PROGRAM
from services.contracts.questions.reading import MOST_FAULTS, Checked, check_source
from services.contracts.questions.source import Source, TrainSource

GOOD = {"kind": "mcq", "prompt": "Which?", "answer": "A"}
NO_LIMIT = 60.0


def check_file(path: Path, limit: int | None, seconds: float) -> Checked:
    return check_source(Source(path=str(path), limit=limit), seconds)


def written(folder: Path, *lines: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_every_fault_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    twice = GOOD | {"id": "q"}
    path = written(tmp_path, GOOD, "{oops", "", GOOD | {"answer": "b"}, twice, twice)
    found = check_file(path, None, NO_LIMIT)
    assert (found.num_rows, found.num_faults, found.whole) == (5, 3, True)
    error = found.error("data.train")
    assert error is not None
    assert error.field == "data.train"
    first, *lines = error.message.splitlines()
    assert first == "data.train: 3 of 5 rows are invalid."
    for line, (place, says) in zip(
        lines,
        [("line 2", "not valid JSON"), ("line 4", "answer is 'b', not the capital letter"), ("line 6", "id 'q'")],
        strict=True,
    ):
        assert line.startswith(f"{path}, {place}: ")
        assert says in line


def test_one_fault_is_the_error_itself(tmp_path: Path) -> None:
    error = check_file(written(tmp_path, GOOD | {"prompt": ""}), None, NO_LIMIT).error("changes.data.train")
    assert error is not None
    assert error.message == f"{tmp_path}/data.jsonl, line 1: the field prompt is missing or empty."
    assert error.remedy.startswith("Each line must be a JSON object")


def test_many_faults_are_counted(tmp_path: Path) -> None:
    found = check_file(written(tmp_path, *["[]"] * (MOST_FAULTS + 7)), None, NO_LIMIT)
    error = found.error("data.train")
    assert error is not None
    lines = error.message.splitlines()
    assert (len(lines), lines[-1]) == (MOST_FAULTS + 2, "And 7 more.")


def test_only_the_rows_that_a_run_reads_are_checked(tmp_path: Path) -> None:
    found = check_file(written(tmp_path, GOOD, GOOD, "[]"), 2, NO_LIMIT)
    assert (found.num_rows, found.error("data.train"), found.whole) == (2, None, True)


@pytest.mark.parametrize(("seconds", "longest", "checked"), [(-1.0, 1 << 20, 0), (NO_LIMIT, 100, 1)])
def test_a_check_that_ends_early_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, longest: int, checked: int
) -> None:
    monkeypatch.setattr(reading, "LONGEST_LINE", longest)
    found = check_file(written(tmp_path, GOOD, GOOD | {"prompt": "w" * 200}, "[]"), None, seconds)
    assert (found.num_rows, found.whole, found.error("data.train")) == (checked, False, None)


@pytest.mark.parametrize(("lines", "says"), [((), "contains no questions"), (None, "cannot be read")])
def test_a_file_without_questions_is_a_fault(tmp_path: Path, lines: tuple[str, ...] | None, says: str) -> None:
    path = tmp_path / "nowhere" if lines is None else written(tmp_path, *lines)
    error = check_file(path, None, NO_LIMIT).error("data.train")
    assert error is not None
    assert says in error.message


def test_the_program_says_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, GOOD, "[]")
    for limit, num_faults in ((None, 1), (2, 0)):
        source = TrainSource(path=str(path), limit=limit).as_json()
        done = subprocess.run([sys.executable, "-m", PROGRAM, source, "60"], capture_output=True, check=True)
        assert json.loads(done.stdout)["num_faults"] == num_faults

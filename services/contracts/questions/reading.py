"""A source's rows as questions: its columns, defaults and filters, its limit, and what is wrong with its rows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from services.contracts.errors import ConfigurationError
from services.contracts.messages import Question
from services.contracts.questions.columns import column, evaluate, text_of
from services.contracts.questions.formats import NoReaderError, RawRow, TooLongError, file_rows
from services.contracts.questions.hub_rows import hub_rows
from services.contracts.questions.rows import Rows, no_questions
from services.contracts.questions.source import Source
from services.contracts.questions.transforms import ColumnError

MOST_FAULTS: Final = 10
"""Faults of a file that are told; the others are counted."""
LONGEST_LINE: Final = 64 << 20
"""Bytes. A check ends at a longer line."""
_COLUMNS: Final = "Correct `columns`, `rows` or `where` of the source (docs/data.md), or the row."
Attempt = tuple[str, Question | ConfigurationError | None]
"""A row's place, and its question, what is wrong with it, or None if the source leaves it out."""


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with one row: file, line and field; and what to do."""

    message: str
    remedy: str


class Checked(msgspec.Struct):
    """What a check of a file's rows found."""

    num_rows: int = 0
    num_faults: int = 0
    faults: list[Fault] = []
    """The first of them."""
    whole: bool = True
    """False if the time was up, or a line too long, before the last row."""
    num_skipped: int = 0
    """Rows that are left out because they cannot be judged."""
    skipped: str = ""
    """What is wrong with the first of them."""
    unread: str = ""
    """Why the file could not be read here, although it may be valid."""

    def add(self, error: ConfigurationError) -> None:
        self.num_faults += 1
        if self.num_faults <= MOST_FAULTS:
            self.faults.append(Fault(error.message, error.remedy))

    def error(self, field: str) -> ConfigurationError | None:
        """The faults as one error, which names the field of the run that names the file; None without faults."""
        if not self.faults:
            return None
        if self.num_faults == 1:
            return ConfigurationError(self.faults[0].message, remedy=self.faults[0].remedy, field=field)
        rows = "rows" if self.whole else "rows checked"
        lines = [f"{field}: {self.num_faults} of {self.num_rows} {rows} are invalid."]
        lines += [f"{fault.message} {fault.remedy}" for fault in self.faults]
        if (more := self.num_faults - len(self.faults)) > 0:
            lines.append(f"And {more} more.")
        return ConfigurationError("\n".join(lines), remedy="", field=field)


def attempts(source: Source, raws: Iterable[RawRow]) -> Iterator[Attempt]:
    """What becomes of each row, in the order of the file."""
    rows = Rows()
    index = 0
    for place, read in raws:
        try:
            parts = list(_parts(source, place, read()))
        except ConfigurationError as error:
            yield place, error
            index += 1
            continue
        for where, row in parts:
            yield where, _attempt(source, rows, where, row, index)
            index += 1


def _attempt(source: Source, rows: Rows, place: str, row: Any, index: int) -> Question | ConfigurationError | None:
    try:
        if isinstance(row, Mapping):
            if not _wanted(source, place, row):
                return None
            row = _mapped(source, place, row)
        return rows.question(place, row, index)
    except ConfigurationError as error:
        return error


def _parts(source: Source, place: str, row: Any) -> Iterator[tuple[str, Any]]:
    """The row, or with `rows` one row for each item of these columns."""
    if not source.rows or not isinstance(row, Mapping):
        yield place, row
        return
    try:
        lists = [column(row, name) for name in source.rows]
    except ColumnError as error:
        raise ConfigurationError(f"{place}: rows: {error}.", remedy=_COLUMNS) from error
    for name, items in zip(source.rows, lists, strict=True):
        if not isinstance(items, list) or len(items) != len(lists[0]):
            what = f"a list of {len(items)}" if isinstance(items, list) else "no list"
            raise ConfigurationError(
                f"{place}: rows: {name} is {what}, but {source.rows[0]} has {len(lists[0])} items."
                if isinstance(lists[0], list)
                else f"{place}: rows: {name} is {what}.",
                remedy=_COLUMNS,
            )
    for number, items in enumerate(zip(*lists, strict=True), start=1):
        yield f"{place}, item {number}", {**row, **dict(zip(source.rows, items, strict=True))}


def _wanted(source: Source, place: str, row: Mapping[str, Any]) -> bool:
    for name, wanted in source.where.items():
        try:
            value = column(row, name)
        except ColumnError as error:
            raise ConfigurationError(f"{place}: where.{name}: {error}.", remedy=_COLUMNS) from error
        choices = wanted if isinstance(wanted, tuple) else (wanted,)
        if not any(value == choice or text_of(value) == str(choice) for choice in choices):
            return False
    return True


def _mapped(source: Source, place: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the fields that the source takes from other columns, and with its defaults."""
    values = dict(row)
    for field, expression in source.columns.items():
        try:
            values[field] = evaluate(expression, row)
        except ColumnError as error:
            shown = expression if isinstance(expression, str) else " + ".join(expression)
            raise ConfigurationError(f"{place}: columns.{field} ({shown}): {error}.", remedy=_COLUMNS) from error
    if "messages" in source.columns and "prompt" not in source.columns:
        values.pop("prompt", None)  # what the run names wins over a column that happens to have this name
    for field, default in (("kind", source.kind), ("system", source.system)):
        if default is not None and values.get(field) is None:
            values[field] = default
    if "tests" in source.columns and isinstance(values["tests"], list):
        values["tests"] = {"cases": values["tests"]}  # what the transforms for programs return
    return values


def read_source(source: Source) -> Iterator[tuple[str, Question]]:
    """The questions of a source with their places.

    Raises:
        ConfigurationError: the source cannot be read, has no questions, or has an invalid row that is not left out.
    """
    raws = file_rows(Path(source.path)) if source.is_file else hub_rows(source)
    num_found, skipped = 0, None
    try:
        for place, found in attempts(source, raws):
            if isinstance(found, ConfigurationError):
                if source.invalid_rows == "refuse":
                    raise found
                skipped = skipped or found
            elif found is not None:
                yield place, found
                num_found += 1
                if num_found == source.limit:
                    return
    except NoReaderError as error:
        raise ConfigurationError(
            f"{source.path} cannot be read: {error}.", remedy="Install `turnout[models]`."
        ) from error
    if not num_found:
        raise skipped or no_questions(source.path)


def check_source(source: Source, seconds: float) -> Checked:
    """Check the rows of a file that a run will read, as many as `seconds` are enough for.

    A file that cannot be read or holds no questions is a fault, too.
    """
    found = Checked()
    try:
        _check_rows(found, source, time.monotonic() + seconds)
        if found.whole and found.num_rows == found.num_skipped and not found.num_faults:
            raise no_questions(source.path)
    except ConfigurationError as error:
        found.add(error)
    return found


def _check_rows(found: Checked, source: Source, deadline: float) -> None:
    try:
        for _, attempt in attempts(source, file_rows(Path(source.path), LONGEST_LINE)):
            if time.monotonic() > deadline:
                found.whole = False
                return
            if attempt is None:
                continue
            found.num_rows += 1
            if isinstance(attempt, ConfigurationError):
                if source.invalid_rows == "skip":
                    found.num_skipped += 1
                    found.skipped = found.skipped or attempt.message
                else:
                    found.add(attempt)
            if found.num_rows - found.num_skipped == source.limit:
                return
    except TooLongError:
        found.whole = False
    except NoReaderError as error:
        found.whole, found.unread = False, str(error)


def skipped_sentence(field: str, source: Source, checked: Checked) -> str:
    """What to tell people about rows that are left out."""
    rows = f"{checked.num_skipped:,} of {checked.num_rows:,} rows"
    return f"{field}: {rows} of {source.path} are left out (invalid_rows: skip); the first: {checked.skipped}"

"""The rows of a data file, by its ending: JSON lines, JSON, CSV and Parquet, each also compressed by gzip.

The standard library reads all but Parquet, because it keeps line numbers, and numbers as they were written.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from services.contracts.errors import ConfigurationError
from services.contracts.questions.rows import FORMAT
from services.contracts.strict_json import BadJsonError, parse_json, parse_json_at

LARGEST_WHOLE: Final = 1 << 30
"""Bytes of a JSON list, or of a compressed Parquet file, which are read whole."""
LONGEST_CELL: Final = 64 << 20
"""Characters."""
ROWS_A_BATCH: Final = 256
RawRow = tuple[str, Callable[[], Any]]
"""Place of a row, and what reads the row or raises `ConfigurationError` naming the place."""


class TooLongError(Exception):
    """A line has more bytes than a check reads."""


class NoReaderError(Exception):
    """The library that reads this format is not installed here."""


def file_rows(path: Path, longest: int = -1) -> Iterator[RawRow]:
    """The rows of a file that are not blank.

    Args:
        path: read by its ending; one that is unknown means JSON lines.
        longest: most bytes of a line of JSON; -1 for any number.

    Raises:
        ConfigurationError: the file cannot be read.
        TooLongError: a line is longer.
        NoReaderError: Parquet, without pyarrow.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    ending = (suffixes[:-1] if packed else suffixes)[-1:]
    read = {".json": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}.get("".join(ending), _line_rows)
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            yield from read(path, file, longest)  # type: ignore[arg-type]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigurationError(
            f"The dataset {path} is not a complete gzip file: {error}.",
            remedy="Compress it again, or correct the extension.",
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"The dataset {path} cannot be read: {error.strerror}.",
            remedy="Set data.train and data.validation to existing files, with paths relative to the services' working "
            "directory.",
        ) from error


def _line_rows(path: Path, file: IO[bytes], longest: int) -> Iterator[RawRow]:
    number = 0
    while line := file.readline(longest + 1 if longest >= 0 else -1):
        number += 1
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            if 0 <= longest < len(line):
                raise TooLongError
            yield (place := f"{path}, line {number}"), partial(read_line, place, line)


def read_line(place: str, line: bytes) -> Any:
    """The JSON value of a line. Raises `ConfigurationError` naming its place."""
    try:
        return parse_json(line.decode().strip(), as_written=True)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{place}: not UTF-8 text (byte {error.start + 1}).", remedy=FORMAT) from error
    except BadJsonError as error:
        raise ConfigurationError(f"{place}: not valid JSON ({error}).", remedy=FORMAT) from error


def _json_rows(path: Path, file: IO[bytes], longest: int) -> Iterator[RawRow]:
    """The items of a list. A file that is no list has JSON lines, whatever its ending says."""
    start = file.read(1 << 16)
    if not start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        file.seek(0)
        yield from _line_rows(path, file, longest)
        return
    data = start + file.read(LARGEST_WHOLE)
    if len(data) > LARGEST_WHOLE:
        raise ConfigurationError(
            f"{path} is a JSON list of more than {LARGEST_WHOLE >> 20} MiB.", remedy="Write it as JSON lines."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text (byte {error.start + 1}).", remedy=FORMAT) from error
    yield from _items(path, text)


def _items(path: Path, text: str) -> Iterator[RawRow]:
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        position = _next(text, position)
        if text[position : position + 1] == "]":
            return
        line, counted = line + text.count("\n", counted, position), position
        place = f"{path}, line {line}"
        try:
            value, position = parse_json_at(text, position)
            position = _next(text, position)
            if text[position : position + 1] not in (",", "]"):
                raise BadJsonError("an item is followed by neither a comma nor the end of the list")
        except BadJsonError as error:
            raise ConfigurationError(f"{place}: not valid JSON ({error}).", remedy="Correct the list.") from error
        yield place, partial(same, value)
        position += text[position] == ","


def _next(text: str, position: int) -> int:
    """Index of the first character from `position` that is not white space."""
    while text[position : position + 1] in (" ", "\n", "\r", "\t"):
        position += 1
    return position


def same(value: Any) -> Any:
    return value


def _csv_rows(path: Path, file: IO[bytes], longest: int) -> Iterator[RawRow]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise ConfigurationError(f"{path}, line 1: the column {twice!r} is given twice.", remedy="Rename one.")
        line = reader.line_num + 1
        for cells in reader:
            if cells:
                yield (place := f"{path}, line {line}"), partial(_csv_row, place, header, cells)
            line = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path}, line {reader.line_num + 1}: not CSV in UTF-8 ({error}).", remedy="Correct the file."
        ) from error


def _csv_row(place: str, header: list[str], cells: list[str]) -> dict[str, str]:
    """The cells that are not empty, by their columns' names, and empty ones as null."""
    if len(cells) != len(header):
        raise ConfigurationError(
            f"{place}: {len(cells)} cells for {len(header)} columns.",
            remedy="Quote cells that contain commas or quotes.",
        )
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}  # type: ignore[misc]


def _parquet_rows(path: Path, file: IO[bytes], longest: int) -> Iterator[RawRow]:
    try:
        import pyarrow  # comes with `datasets`, which the API's image does not have
        import pyarrow.parquet
    except ImportError as error:
        raise NoReaderError("pyarrow, which reads Parquet, is not installed here") from error
    if path.suffix.lower() == ".gz":
        data = file.read(LARGEST_WHOLE + 1)
        if len(data) > LARGEST_WHOLE:
            raise ConfigurationError(
                f"{path} has more than {LARGEST_WHOLE >> 20} MiB when it is unpacked.",
                remedy="Unpack it; Parquet files are compressed inside.",
            )
        file = io.BytesIO(data)
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(ROWS_A_BATCH, use_threads=False):
            for row in batch.to_pylist():
                yield f"{path}, row {number}", partial(same, table_row(row))
                number += 1
    except pyarrow.ArrowException as error:
        raise ConfigurationError(
            f"{path} is not a Parquet file, or is damaged: {error}.", remedy="Write it again, or correct the extension."
        ) from error


def table_row(row: dict[str, Any]) -> dict[str, Any]:
    """A table's row without the nulls with which the table fills in the fields of other rows' settings."""
    return row | {"tests": _unpadded(row["tests"])} if row.get("tests") is not None else row


def _unpadded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unpadded(item) for name, item in value.items() if item is not None}
    return [_unpadded(item) for item in value] if isinstance(value, list) else value

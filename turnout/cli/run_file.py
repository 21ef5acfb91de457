"""Reads run files from disk and applies settings to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.contracts.errors import ConfigurationError
from services.contracts.questions.reading import Checked, check_source, skipped_sentence
from services.contracts.questions.slow_patterns import SLOW_REMEDY, explodes
from services.contracts.run_config import RunConfig
from services.contracts.run_file import ParsedRunFile, check, read_run_text, read_value

MAX_CHARACTERS = 1_000_000
ROW_SECONDS = 60
"""For the check of one file's rows."""
REMEDY = "See docs/configuration.md for every field."


def load_run(path: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The checked content of a run file, as the body of `POST /v1/runs`, with `settings` ("a.b=value") applied.

    Raises:
        ConfigurationError: with file, line and field, the value found and what is expected.
    """
    file = read_run_file(path)
    for setting in settings:
        apply_setting(file, setting)
    _check_patterns(file, check(file))
    return file.values


def _check_patterns(file: ParsedRunFile, config: RunConfig) -> None:
    """Refuse patterns that take exponential time. Only here, since trying them takes time, which the API has not."""
    for number, part in enumerate(config.rewards):
        if part.pattern is not None and explodes(re.compile(part.pattern), full=False):
            field = f"rewards.{number}.pattern"
            raise ConfigurationError(
                f"{file.place(('rewards', number, 'pattern'))}: {field} is {part.pattern[:60]!r}, which takes "
                "exponential time for some responses.",
                remedy=SLOW_REMEDY,
                field=field,
            )


def read_run_file(path: Path) -> ParsedRunFile:
    """Parse a run file. Raises `ConfigurationError` with file and line if it is not the YAML of a run file."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"The run file {path} cannot be read: {reason}.", remedy="Check its path.") from error
    if len(text) > MAX_CHARACTERS:
        raise ConfigurationError(f"{path} has more than {MAX_CHARACTERS} characters; is it a run file?", remedy=REMEDY)
    return read_run_text(text, str(path))


def apply_setting(file: ParsedRunFile, setting: str) -> None:
    """Apply one `section.field=value`; the value is parsed as YAML."""
    name, equals, text = setting.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise ConfigurationError(f"--set {setting!r} is not of the form section.field=value.", remedy=REMEDY)
    try:
        file.lay(keys, read_value(text, f"--set {name}"))
    except TypeError as error:
        raise ConfigurationError(f"--set {name}: {error} is a field, not a section.", remedy=REMEDY) from error


def check_rows(config: RunConfig) -> list[str]:
    """Check every row of the data files that are on this machine; says which rows were checked, a sentence a file.

    Raises:
        ConfigurationError: rows cannot be used; one line a fault, with its place.
    """
    found = []
    for field, source in config.data.files():
        path = source.path
        if not Path(path).exists():
            found.append(f"{field}: {path} is not here; its rows are checked where the services run.")
            continue
        checked = check_source(source, ROW_SECONDS)
        if error := checked.error(field):
            raise error
        found.append(_checked_sentence(field, path, checked))
        if checked.num_skipped:
            found.append(skipped_sentence(field, source, checked))
    return found


def count_questions(config: RunConfig) -> int | None:
    """Questions of one evaluation of all validation sets; None if a file is not on this machine or cannot be read."""
    total = 0
    for source in config.data.validation_sets():
        checked = check_source(source, ROW_SECONDS) if source.is_file and Path(source.path).exists() else None
        if checked is None or checked.unread or not checked.whole:
            return None
        limits = (checked.num_rows, source.limit, config.evaluation.max_questions)
        total += min(limit for limit in limits if limit is not None)
    return total


def _checked_sentence(field: str, path: str, checked: Checked) -> str:
    rows = f"{checked.num_rows:,} row{'s' * (checked.num_rows != 1)} of {path}"
    if checked.unread:
        return f"{field}: {path} is not checked: {checked.unread}; the learner checks it."
    if checked.whole:
        return f"{field}: {rows} checked."
    return f"{field}: only the first {rows} checked in {ROW_SECONDS} s; the learner checks all of them."


def changes_of(settings: Sequence[str]) -> dict[str, Any]:
    """Settings of the form "a.b=value" as nested values: `{"a": {"b": value}}`. Raises `ConfigurationError`."""
    file = ParsedRunFile("")
    for setting in settings:
        apply_setting(file, setting)
    return file.values

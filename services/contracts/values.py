"""Bounds of what people send, checked before anything is made of it. `run_file` keeps to them in YAML.

A run's configuration has fewer than 200 values. Without a bound, one body of unknown fields holds up everybody while
each field is looked at and a sentence is written about it; an alias of YAML stands for as many values as one likes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.contracts.errors import ConfigurationError

MAX_VALUES = 1000
MAX_DEPTH = 20
MAX_PLACE = 120
REMEDY = "docs/configuration.md has every field of a run."


def check_values(values: Any) -> None:
    """Refuse values read from JSON that are too many, too deep, or text that no file or database can hold.

    Raises:
        ConfigurationError: names the bound; for text, the field.
    """
    level: list[tuple[str, Any]] = [("", values)]
    num_values = 0
    for _ in range(MAX_DEPTH):
        below: list[tuple[str, Any]] = []
        for place, value in level:
            _check_text(place, value)
            for key, item in _items(value):
                num_values += 1
                if num_values > MAX_VALUES:
                    raise _refused(f"There are more than {MAX_VALUES} values.", place)
                _check_text(place, key)
                below.append((f"{place}.{key}".lstrip("."), item))
        if not below:
            return
        level = below
    raise _refused(f"The values are nested more than {MAX_DEPTH} levels deep.", level[0][0].partition(".")[0])


def _refused(text: str, place: str) -> ConfigurationError:
    return ConfigurationError(text, remedy=REMEDY, field=place[:MAX_PLACE] or None)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _check_text(place: str, value: Any) -> None:
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{place[:MAX_PLACE] or 'The text'} contains {value[error.start]!a}, an unpaired surrogate.",
            remedy="Remove it; characters above U+FFFF need a pair of surrogates.",
            field=place[:MAX_PLACE] or None,
        ) from error

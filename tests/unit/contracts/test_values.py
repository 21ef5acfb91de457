"""Bounds of what people send, checked before anything is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from services.contracts.errors import ConfigurationError
from services.contracts.run_config import parse_run_config
from services.contracts.values import MAX_DEPTH, MAX_VALUES, check_values


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def test_what_a_run_may_need_passes() -> None:
    check_values({"model": {"lora": {"target_modules": ["x"] * (MAX_VALUES - 4)}}, "name": "é \U0001f680"})
    check_values(nested(MAX_DEPTH - 1))
    check_values(None)


@pytest.mark.parametrize(
    ("values", "words", "field"),
    [
        ({f"a{number}": 1 for number in range(MAX_VALUES + 1)}, "more than 1000 values", None),
        ({"data": {"train": [[1] * 600, [1] * 600]}}, "more than 1000 values", "data.train.1"),
        ({"data": nested(MAX_DEPTH)}, "more than 20 levels", "data"),
        ({"model": {"path": "a\ud800b"}}, r"model.path contains '\\ud800', an unpaired surrogate", "model.path"),
        ({"model": {"\udfff": 1}}, r"model contains '\\udfff'", "model"),
        (["\ud83d"], r"0 contains '\\ud83d'", "0"),
        ("\ude80", "The text contains", None),
    ],
)
def test_what_no_run_needs_is_refused(values: Any, words: str, field: str | None) -> None:
    for check in (check_values, parse_run_config):
        with pytest.raises(ConfigurationError, match=words) as caught:
            check(values)
        assert caught.value.field == field
        str(caught.value).encode()


def test_of_very_many_faults_the_first_are_told() -> None:
    fields = {f"field_{number}": 1 for number in range(900)} | {"x" * 100_000: 1}
    with pytest.raises(ConfigurationError) as caught:
        parse_run_config(fields)
    assert "field_0 is not a field" in caught.value.message
    assert "; and " in caught.value.message
    assert len(caught.value.message) < 2000
    with pytest.raises(ConfigurationError) as caught:
        parse_run_config({"x" * 100_000: 1})
    assert len(str(caught.value)) < 1000

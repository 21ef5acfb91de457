"""The reader of run files: every fault with its line, and nothing that is larger than it looks."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.errors import ConfigurationError
from services.contracts.run_file import check, read_run_text

GOOD = "name: x\nmodel: {path: m}\ndata: {train: t}\ntraining:\n  steps: 3\n"


def bomb(levels: int) -> str:
    """A few lines that stand for 9 to the power of `levels` values."""
    lines = ["a0: &a0 lol"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(30), "Line 2: *a0 is a YAML alias"),
        ("a: &a [*a]", "Line 1: *a is a YAML alias"),
        ("base: &b {x: 1}\nmore:\n  <<: *b", "Line 3: *b is a YAML alias"),
        ("[" * 100_000, "more than 20 levels"),
        ("- " * 1000 + "a", "more than 20 levels"),
        ("\n".join(f"a{number}: 1" for number in range(1001)), "Line 1001: there are more than 1000 values"),
        ("a: [1", "Line 1: not YAML"),
        ("a: 1\nb: [1\n", "Line 3: not YAML"),
        ("- a\n- b", "Line 1: a run file is a mapping"),
        ("", "Line 1: a run file is a mapping"),
        ("a: 1\nb: 2020-99-99", "Line 2: 2020-99-99 cannot be read"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: \ud800", "cannot be read"),
        (
            "a:\n  !!python/object/apply:os.system ['true']",
            "Line 2: tag:yaml.org,2002:python/object",
        ),
        ("a: !!python/name:os.system", "Line 1: not YAML"),
        ("a: 1\n1: a", "Line 2: 1 is not the name of a field"),
        ("a: 1\n[b]: a", "Line 2: a list or section is not the name of a field"),
        ("a: 1\nb: 2\na: 3", "Line 3: a is given twice"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)) as caught:
        read_run_text(text)
    assert "\n" not in caught.value.message
    with pytest.raises(ConfigurationError, match=re.escape(f"my.yaml, l{words[1:]}" if words[0] == "L" else words)):
        read_run_text(text, "my.yaml")


def test_a_wrong_field_is_told_with_its_line() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(read_run_text(GOOD + "rollout:\n  top_p: 7\n  top_k: -1\n"))
    first, second = caught.value.message.split("\n")
    assert first.startswith("Line 7: rollout.top_p is 7")
    assert second.startswith("Line 8: rollout.top_k is -1")
    assert caught.value.field == "rollout.top_p"


def test_of_very_many_wrong_fields_the_first_are_told() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(read_run_text(GOOD + "".join(f"f{number}: 1\n" for number in range(50))))
    told = caught.value.message.split("\n")
    assert (len(told), told[-1]) == (11, "And 40 more.")


def test_a_file_with_as_many_values_as_a_run_may_have_is_read() -> None:
    assert len(read_run_text("\n".join(f"a{number}: [1]" for number in range(600))).values) == 600


@given(st.text(alphabet=st.sampled_from("a1:-[]{}&*!'\"|> \n\t#%,?"), max_size=60))
def test_any_text_is_a_mapping_or_a_named_error(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert isinstance(read_run_text(text).values, dict)

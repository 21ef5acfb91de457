"""What is a name on the hub, and what would be read as a folder."""

from __future__ import annotations

import pytest
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.errors import ConfigurationError
from services.contracts.hub import is_hub_name, parse_hub_data

WRONG = [
    *(
        "",
        "name",
        "..",
        "../..",
        "../data",
        "owner/..",
        "./name",
        "owner/.",
        "/etc",
        "/etc/passwd",
        "//x",
        "owner//name",
    ),
    *("a/b/c", "owner/name/", "/owner/name", "owner\\name", "..\\..", "owner/na\\me", "%2e%2e/x", "owner/%2e%2e"),
    *("owner/..name", "owner/name..", "ow..ner/name", "owner/-name", "owner/name.git", "owner/na--me", "~/name"),
    *("owner/name@main", "owner/name@refs/pr/1", "owner/name?x", "owner/name#x", "owner/na me", "owner/name\n"),
    *("\u2025/x", "owner/\uff0e\uff0e", "owner/\uff4eame", "ówner/name", "owner/n\u0000", "owner/\ud800"),
    *("hf://datasets/owner/name", "https://x/y", "x" * 97 + "/name", "owner/" + "x" * 97),
]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_name_is_refused(name: str) -> None:
    assert not is_hub_name(name)
    for source in (f"hub:{name}", f"hub:{name}:train"):
        with pytest.raises(ConfigurationError, match=r"hub:<owner>/<name>") as caught:
            parse_hub_data(source, "data.validation")
        assert caught.value.field == "data.validation"


@pytest.mark.parametrize("split", ["", "..", "a/b", "train[:1%]", "tr\u00e4in", "a:b", "x" * 101])
def test_a_split_that_is_none_is_refused(split: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_hub_data(f"hub:owner/name:{split}")


def test_a_name_with_and_without_a_split() -> None:
    assert parse_hub_data("hub:openai/gsm8k") == ("openai/gsm8k", "train")
    assert parse_hub_data("hub:A-b_c.d/E-f_g.h:test_v1.0") == ("A-b_c.d/E-f_g.h", "test_v1.0")


@given(st.from_regex(r"[A-Za-z0-9._-]{1,8}/[A-Za-z0-9._-]{1,8}", fullmatch=True).filter(is_hub_name))
def test_every_name_that_is_taken_is_one_to_the_hub(name: str) -> None:
    validate_repo_id(name)

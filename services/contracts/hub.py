"""Names on the Hugging Face hub. Invalid names are never looked up, because libraries would treat them as folders."""

from __future__ import annotations

import re

from services.contracts.errors import ConfigurationError

PREFIX = "hub:"
_PART = r"(?![-.])[A-Za-z0-9._-]{1,96}(?<![-.])"
_NAME = re.compile(f"{_PART}/{_PART}")
_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def is_hub_name(text: str) -> bool:
    """Whether `text` is `owner/name` by the hub's own rules (`huggingface_hub.utils.validate_repo_id`).

    Names without an owner are left out: `datasets` takes `hub:json` for its JSON reader, on the working folder.
    """
    return bool(_NAME.fullmatch(text)) and "--" not in text and ".." not in text and not text.endswith(".git")


def hub_place(source: str, field: str = "data.train") -> tuple[str, str]:
    """Name and split of `hub:<owner>/<name>[:<split>]`; the split is empty if there is none.

    Raises:
        ConfigurationError: the name is not one of the hub, or the split is not one.
    """
    name, colon, split = source.removeprefix(PREFIX).partition(":")
    if not is_hub_name(name) or (colon and not _SPLIT.fullmatch(split)):
        raise ConfigurationError(
            f"{field} is {source[:200]}, which is not hub:<owner>/<name>[:<split>].",
            remedy="Write for example hub:owner/name:train. A revision is a field of its own in a list of sources.",
            field=field,
        )
    return name, split


def parse_hub_data(source: str, field: str = "data.train") -> tuple[str, str]:
    """As `hub_place`, with the split `train` if there is none."""
    name, split = hub_place(source, field)
    return name, split or "train"

"""Takes secrets out of a library's messages."""

from __future__ import annotations

import os
import re

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
SHORTEST = 6
"""Characters of a value that is taken for a secret; shorter ones occur in ordinary words."""


def masked(text: str) -> str:
    """A message without user names and passwords in URLs, and without values of variables named like secrets."""
    text = _USER_IN_URL.sub("***@", text)
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return text

"""Checks the rows of one file in a process of its own, which can be ended however long a row takes.

    python -m services.contracts.questions.check_rows SOURCE SECONDS

SOURCE is a `Source` as JSON. Writes a `Checked` as JSON.
"""

from __future__ import annotations

import resource
import sys
from typing import Final

import msgspec

from services.contracts.questions.reading import check_source
from services.contracts.questions.source import Source

MOST_MEMORY: Final = 2 << 30
"""Bytes of address space."""


def main(source: str, seconds: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    sys.stdout.buffer.write(msgspec.json.encode(check_source(Source.model_validate_json(source), float(seconds))))


if __name__ == "__main__":
    main(*sys.argv[1:])

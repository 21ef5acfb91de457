"""Checks the rows of one file in a process of its own, which can be ended however long a row takes.

    python -m services.contracts.questions.check_rows FILE LIMIT SECONDS

LIMIT is a number of rows, 0 for all. Writes a `Checked` as JSON.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Final

import msgspec

from services.contracts.questions.rows import check_file

MOST_MEMORY: Final = 2 << 30
"""Bytes of address space."""


def main(path: str, limit: str, seconds: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    sys.stdout.buffer.write(msgspec.json.encode(check_file(Path(path), int(limit) or None, float(seconds))))


if __name__ == "__main__":
    main(*sys.argv[1:])

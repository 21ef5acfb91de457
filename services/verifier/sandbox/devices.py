"""Emulates `/dev/stdin` and similar paths without a /proc: opening one duplicates the descriptor that it names.

Mounting a /proc for each program would cost too much. Instead `open` and `os.open` are wrapped, only for programs whose
source contains such a path.
"""

from __future__ import annotations

import builtins
import io
import os
import re
from typing import Any, Final

_MENTIONS: Final = (b"/dev/std", b"/dev/fd", b"/proc/self/fd")
_PATH: Final = re.compile(r"/dev/(stdin|stdout|stderr)|(?:/dev|/proc/self)/fd/([0-9]{1,4})")
_NAMED: Final = {"stdin": 0, "stdout": 1, "stderr": 2}


def mentioned(source: bytes) -> bool:
    return any(text in source for text in _MENTIONS)


def redirect() -> None:
    """Wrap the functions that open files. Called in the child, just before the program runs."""
    open_file, open_descriptor, exists = io.open, os.open, os.path.exists

    def wrapped_open(file: Any, *arguments: Any, **options: Any) -> Any:
        number = _descriptor(file)
        return open_file(file if number is None else os.dup(number), *arguments, **options)

    def wrapped_descriptor(path: Any, *arguments: Any, **options: Any) -> int:
        number = _descriptor(path)
        return open_descriptor(path, *arguments, **options) if number is None else os.dup(number)

    builtins.open = io.open = wrapped_open
    os.open = wrapped_descriptor
    os.path.exists = lambda path: _descriptor(path) is not None or exists(path)


def _descriptor(path: Any) -> int | None:
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    found = _PATH.fullmatch(os.fsdecode(path))
    return None if found is None else _NAMED[found[1]] if found[1] else int(found[2])

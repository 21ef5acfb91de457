"""Writes turnout/client/client.py from async_client.py, so that each request is defined once. `--check` fails if
stale."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

FOLDER = Path(__file__).resolve().parents[1] / "turnout/client"
SOURCE, TARGET = FOLDER / "async_client.py", FOLDER / "client.py"
NAMES = {
    "AsyncBaseTransport": "BaseTransport",
    "AsyncClient": "Client",
    "aclose": "close",
    "aiter_text": "iter_text",
    "aread": "read",
    "asyncio": "time",
}
PHRASES = {
    "for asyncio programs": "for scripts and notebooks",
    "an `async with` statement": "a `with` statement",
    "asynchronous iterators": "iterators",
    "`make docs` makes client.py from this file.": "`make docs` makes this file from async_client.py.",
}


def blocking() -> str:
    """The blocking client's source."""
    with tempfile.TemporaryDirectory() as folder:
        unasync.unasync_files([str(SOURCE)], [unasync.Rule(str(FOLDER), folder, NAMES)])
        text = (Path(folder) / SOURCE.name).read_text()
    for asynchronous, synchronous in PHRASES.items():
        assert asynchronous in text, asynchronous
        text = text.replace(asynchronous, synchronous)
    ruff = [str(Path(sys.executable).with_name("ruff"))]
    for command in (["check", "--fix", "--unsafe-fixes", "--quiet", "--exit-zero"], ["format"]):
        options = [*ruff, *command, "--stdin-filename", str(TARGET), "-"]
        text = subprocess.run(options, input=text, capture_output=True, text=True, check=True).stdout
    return text


def main() -> None:
    text = blocking()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text)
    elif TARGET.read_text() != text:
        sys.exit(f"{TARGET.name} is stale. Run `make docs` and commit it.")


if __name__ == "__main__":
    main()

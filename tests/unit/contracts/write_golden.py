"""Writes the golden files of the wire format: `python -m tests.unit.contracts.write_golden`."""

from pathlib import Path

from services.contracts import codec
from tests.unit.contracts.examples import EXAMPLES

if __name__ == "__main__":
    folder = Path(__file__).with_name("golden")
    folder.mkdir(exist_ok=True)
    for message in EXAMPLES:
        (folder / f"{type(message).__name__}.v{codec.VERSION}.bin").write_bytes(codec.encode(message))

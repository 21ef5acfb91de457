"""Sandboxes for the tests: with namespaces, and bare, as in a default container."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.contracts.errors import UnavailableError
from services.runtime.process import LoopThread
from services.verifier.sandbox.sandbox import Sandbox

PYTHONS = (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3")
"""Tried in this order: an interpreter below /root, say, cannot be read by the users that programs run as."""


def start(loop: LoopThread, **options: object) -> Sandbox:
    """A started sandbox with the first interpreter that works here."""
    faults = []
    for python in dict.fromkeys(filter(lambda path: Path(path).exists(), PYTHONS)):
        sandbox = Sandbox(python=python, **options)  # type: ignore[arg-type]
        try:
            loop.call(sandbox.start())
        except UnavailableError as error:
            faults.append(str(error))
        else:
            return sandbox
    raise AssertionError(f"No interpreter works in the sandbox: {faults}")


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()

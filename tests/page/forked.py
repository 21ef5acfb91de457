"""The real API in a process forked from one that has imported everything, so that starts are fast."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.conftest import ROOT

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["services.api.__main__", "tests.page.forked"])


def start_api(environment: Mapping[str, str], log: Path) -> ForkServerProcess:
    """Start it with these variables; its output is appended to `log`."""
    process = _forks.Process(target=_program, args=(dict(environment), str(log)), daemon=True)
    process.start()
    return process


def _program(environment: dict[str, str], log: str) -> None:
    from services.api.__main__ import main

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    main()

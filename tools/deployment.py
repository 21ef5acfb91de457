"""A real deployment, started and stopped by the `turnout` command; for tests and benchmarks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from services.contracts.errors import TurnoutError
from services.contracts.records import Run
from services.contracts.run_config import merge
from services.contracts.states import TERMINAL_STATES
from services.runtime.address import free_port
from turnout.client.client import Client

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "runs" / "demo.yaml"
TURNOUT = [sys.executable, "-m", "turnout.cli.main"]
ROOTS = f"{ROOT}:{tempfile.gettempdir()}"
"""Models and data may also be in temporary folders."""
STALLED_AFTER = "5"
PATIENCE_SECONDS = 600.0
"""A bound on otherwise indefinite waits; no test depends on the clock."""


def demo_config(**changes: Any) -> dict[str, Any]:
    """The demo's run file with changes, section by section."""
    return merge(yaml.safe_load(DEMO.read_text()), changes)


def turnout(*arguments: str, home: Path, within: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command and wait for its end. `within` is a command prefix, which makes it run elsewhere."""
    environment = {"TURNOUT_ROOTS": ROOTS} | os.environ | {"TURNOUT_STALL_SECONDS": STALLED_AFTER}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(
        [*within, *TURNOUT, *arguments, "--home", str(home)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@contextmanager
def deployment(home: Path, within: Sequence[str] = (), options: Sequence[str] = ()) -> Iterator[Client]:
    """`turnout up --detach` with further options, and a client of its API; `turnout down` at the end, in any case.

    A program that is terminated meanwhile ends as if by `sys.exit`, so that its deployment does not outlive it.
    """
    port = free_port()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)) if _is_main() else None
    started = turnout("up", "--detach", "--api-port", str(port), *options, home=home, within=within)
    try:
        assert started.returncode == 0, started.stderr + started.stdout
        with Client(f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        turnout("down", home=home)
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _is_main() -> bool:
    """Whether signal handlers may be set here."""
    return threading.current_thread() is threading.main_thread()


def patiently(ask: Callable[[], Any], until: Callable[[Any], bool]) -> Any:
    """Ask until the answer satisfies `until`. Errors, such as those of a restarting API, are retried."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    answer: Any = None
    while time.monotonic() < deadline:
        try:
            answer = ask()
            if until(answer):
                return answer
        except TurnoutError as error:
            answer = error
        time.sleep(0.2)
    raise AssertionError(f"still {answer!r} after {PATIENCE_SECONDS:.0f} s")


def finish(client: Client, run_id: str) -> Run:
    """The run once it has ended."""
    run: Run = patiently(lambda: client.run(run_id), lambda run: run.state in TERMINAL_STATES)
    return run

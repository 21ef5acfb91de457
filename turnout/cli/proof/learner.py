"""Runs the learner's parts of the GPU proof in a process of their own, which has torch and the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from services.contracts.errors import TurnoutError
from turnout.cli.local.plan import working_folder
from turnout.cli.proof.outcome import Outcome

PROGRAM = [sys.executable, "-m", "services.learner.proof"]
HIDDEN = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
"""Environment without GPUs."""


def learner_parts(names: Sequence[str], log: Path, *, cpu: bool, begin: Callable[[str], None]) -> Iterator[Outcome]:
    """The outcomes of parts, as each ends. If the process dies, its part has failed, and another process runs the rest.

    Args:
        log: file for what the process and its libraries print.
        begin: called with the name of each part before it runs.
    """
    left = list(names)
    while left:
        with log.open("ab") as file, _started(["--cpu"] * cpu + left, log=file, cpu=cpu) as process:
            try:
                began = time.monotonic()
                begin(left[0])
                assert process.stdout is not None
                for line in process.stdout:
                    found = msgspec.json.decode(line, type=Outcome)
                    yield msgspec.structs.replace(found, seconds=time.monotonic() - began)
                    left.remove(found.part)
                    began = time.monotonic()
                    if left:
                        begin(left[0])
            finally:
                process.kill()
        if left:
            text = f"the process exited with code {process.wait()}: {last_line(log)}"
            yield Outcome(left.pop(0), "FAILED", text, time.monotonic() - began)


def write_model(folder: Path, tokenizer: Path, shape: str, dtype: str, log: Path, *, cpu: bool) -> None:
    """Write a model of random weights. Raises `TurnoutError` with what the program printed last."""
    options = ["--cpu"] * cpu + ["--write-model", str(folder), str(tokenizer), shape, dtype]
    with log.open("ab") as file, _started(options, log=file, cpu=cpu) as process:
        code = process.wait()
    if code:
        raise TurnoutError(f"The model of random weights was not written: {last_line(log)}")


def _started(options: Sequence[str], *, log: IO[bytes], cpu: bool) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *options],
        cwd=working_folder(),
        env=os.environ | (HIDDEN if cpu else {}),
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )


def last_line(log: Path) -> str:
    """The last line of a log that has something in it."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"

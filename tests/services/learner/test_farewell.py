"""A program that is terminated while it writes a checkpoint finishes writing it first."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from services.learner.connections.progress_pipe import EXIT_TERMINATED
from tests.conftest import ROOT

PROGRAM = """
import sys, threading, time
from services.learner.connections import farewell
farewell.end_on_sigterm()
begun = threading.Event()
def write():
    with farewell.writing():
        begun.set()
        sys.stdin.readline()
        print("written", flush=True)
writer = threading.Thread(target=write, daemon=True)
if "writes" in sys.argv:
    writer.start()
    begun.wait()
print("ready", flush=True)
if "fails" in sys.argv:
    farewell.end_when_written(3)
# Deep in native code, as a training thread may be.
import ctypes
while True:
    ctypes.CDLL(None).sleep(600)
"""


CASES = [("writes", EXIT_TERMINATED), ("writes fails", 3), ("trains", EXIT_TERMINATED)]


@pytest.mark.parametrize(("what", "code"), CASES)
def test_an_unfinished_checkpoint_is_finished_before_the_program_exits(what: str, code: int) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PROGRAM, *what.split()]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as program:
        try:
            assert program.stdin is not None
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            if code == EXIT_TERMINATED:
                program.send_signal(signal.SIGTERM)
            if "writes" in what:
                program.stdin.write("continue\n")
                program.stdin.flush()
                assert program.stdout.readline() == "written\n"
            assert program.wait(20) == code
        finally:
            program.kill()

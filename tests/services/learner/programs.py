"""Starting the training program in tests, from a process that has its imports done (`warm`)."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from services.learner.connections.progress_pipe import MEETING_VARIABLE, RUN_VARIABLE
from tests.conftest import ROOT
from tests.faults import NAMESPACES_OF
from tests.services.learner.ring import bytecode_cached


class Program:
    """One process: can be killed and waited for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: queue.Queue[int] = queue.Queue()
        self.code: int | None = None

    def kill(self) -> None:
        if self.code is None and self.ended.empty():
            with suppress(ProcessLookupError):  # it has just exited, and its exit code is on its way
                os.kill(self.pid, 9)

    def wait(self, seconds: float = 240.0) -> int:
        """The exit code, negative for a signal. Raises `queue.Empty` if the process does not end in time."""
        if self.code is None:
            self.code = self.ended.get(timeout=seconds)
        return self.code


class Programs:
    """The warm process and what it started."""

    def __init__(self) -> None:
        environment = bytecode_cached(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._warm = subprocess.Popen(
            [sys.executable, "-m", "tests.services.learner.warm"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers: queue.Queue[int] = queue.Queue()
        self._running: dict[int, Program] = {}
        self._early: dict[int, int] = {}
        threading.Thread(target=self._read, daemon=True).start()
        self._answers.get(timeout=240)

    def _read(self) -> None:
        assert self._warm.stdout is not None
        for line in self._warm.stdout:
            if not line.startswith("{"):
                continue
            answer = json.loads(line)
            if "ended" in answer:
                program = self._running.get(answer["ended"])
                if program is None:
                    self._early[answer["ended"]] = answer["code"]
                else:
                    program.ended.put(answer["code"])
            else:
                pid = answer.get("pid", 0)
                if pid:
                    self._running[pid] = Program(pid)
                self._answers.put(pid)

    def start(self, module: str, variables: Mapping[str, str], arguments: Sequence[str] = ()) -> Program:
        assert self._warm.stdin is not None
        environment = bytecode_cached(os.environ) | dict(variables)
        self._warm.stdin.write(json.dumps({"module": module, "env": environment, "arguments": list(arguments)}) + "\n")
        self._warm.stdin.flush()
        return self._running[self._answers.get(timeout=60)]

    @contextmanager
    def ranks(
        self, module: str, num_ranks: int, variables: Mapping[str, str], arguments: Sequence[str] = ()
    ) -> Iterator[list[Program]]:
        """Start one process per rank; kill them at the end."""
        meeting = tempfile.TemporaryDirectory()
        shared = {
            "WORLD_SIZE": str(num_ranks),
            MEETING_VARIABLE: os.path.join(meeting.name, "store"),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        } | dict(variables)
        started = [
            self.start(module, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, arguments)
            for rank in range(num_ranks)
        ]
        try:
            yield started
        finally:
            for program in started:
                program.kill()
            for program in started:
                program.wait()
            meeting.cleanup()

    @contextmanager
    def training(
        self, valkey_url: str, home: Path, run_id: str, num_ranks: int = 1, inside: int | None = None
    ) -> Iterator[Program]:
        """Start a run's training program and return rank 0's process. `inside`: in the namespaces of this process."""
        variables = {
            "TURNOUT_REDIS_URL": valkey_url,
            "TURNOUT_HOME": str(home),
            "TURNOUT_LOG_FORMAT": "text",
            RUN_VARIABLE: run_id,
        } | ({} if inside is None else {NAMESPACES_OF: str(inside)})
        with self.ranks("train", num_ranks, variables) as started:
            yield started[0]

    def close(self) -> None:
        assert self._warm.stdin is not None
        self._warm.stdin.close()
        try:
            self._warm.wait(10)
        except subprocess.TimeoutExpired:
            self._warm.kill()
            self._warm.wait()

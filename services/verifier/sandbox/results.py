"""The sandbox's input and output."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from typing import Literal

from services.verifier.sandbox.frames import Ended, Reply, Request

Status = Literal[
    "exited", "timeout_cpu", "timeout_wall", "starved", "memory", "output_limit", "killed", "infrastructure_fault"
]
_NEARLY = 0.95
MOST_SECONDS = 86400


@dataclass(frozen=True, slots=True)
class Program:
    """One run of one Python program."""

    source: str
    """Runs as `__main__`. Never put expected answers or secrets in it: the program can read its own source."""
    stdin: bytes = b""
    wall_seconds: float = 10.0
    """Wall time from the fork to the end, minus the time spent waiting for a core."""
    cpu_seconds: float = 5.0
    """CPU time of all its threads; exact to a few milliseconds."""
    memory_bytes: int = 256 << 20
    """Address space beyond the interpreter's own. The scratch folder adds at most 16 MiB."""
    output_bytes: int = 1 << 20
    """Limit in bytes for standard output, standard error and each file."""

    def __post_init__(self) -> None:
        assert 0 < self.wall_seconds < MOST_SECONDS, self.wall_seconds
        assert 0 < self.cpu_seconds < MOST_SECONDS, self.cpu_seconds
        assert self.memory_bytes > 0, self.memory_bytes
        assert self.output_bytes > 0, self.output_bytes

    @property
    def patience_seconds(self) -> float:
        """Longest wall time, however busy the machine is."""
        return 3 * self.wall_seconds + 5

    def request(self) -> Request:
        return Request(self.cpu_seconds, self.wall_seconds, self.patience_seconds, self.memory_bytes, self.output_bytes)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a program.

    `timeout_wall`: it slept or waited. `starved`: the machine was too busy, so run it again alone before it counts.
    `killed`: it died from a signal (a crash, or a lethal system call), or had too many threads.
    """

    status: Status
    exit_code: int | None
    """Its exit code; minus the signal's number if a signal ended it; None if it never ran."""
    stdout: bytes
    stderr: bytes
    cpu_seconds: float
    wall_seconds: float
    queued_seconds: float = 0.0
    """How long it waited for a core, which is measured only for programs that take long."""
    violations: list[str] = field(default_factory=list)
    """Limits that it exceeded: cpu_time, wall_time, memory, output, threads, system_call."""
    fault: str = ""
    """The reason for an infrastructure fault."""

    @classmethod
    def of_fault(cls, fault: str) -> Result:
        return cls("infrastructure_fault", None, b"", b"", 0.0, 0.0, fault=fault)


def classify(program: Program, reply: Reply, stdout: bytes, stderr: bytes, *, host_killed: bool) -> Result:
    """The result of a run, from the kernel's measurements. `host_killed` says that the host, short of memory, killed a
    process during the run."""
    code = os.waitstatus_to_exitcode(reply.wait_status)
    status, violation, fault = _status(program, reply, code, stdout, stderr, host_killed)
    return Result(
        status,
        None if reply.ended is Ended.NOT_STARTED else code,
        stdout,
        stderr,
        reply.cpu_seconds,
        reply.wall_seconds,
        reply.queued_seconds,
        [violation] if violation else [],
        fault,
    )


def _status(
    program: Program, reply: Reply, code: int, stdout: bytes, stderr: bytes, host_killed: bool
) -> tuple[Status, str, str]:
    if reply.ended is Ended.NOT_STARTED:
        return "infrastructure_fault", "", reply.fault or "The program's process exited before its set-up was complete."
    if reply.ended is Ended.CPU_LIMIT:
        return "timeout_cpu", "cpu_time", ""
    if reply.ended is Ended.WALL_LIMIT:
        return "timeout_wall", "wall_time", ""
    if reply.ended is Ended.STARVED:
        return "starved", "", ""
    if reply.ended is Ended.TOO_MANY_THREADS:
        return "killed", "threads", ""
    if max(len(stdout), len(stderr)) >= program.output_bytes:
        return "output_limit", "output", ""
    if code == -signal.SIGSYS:
        return "killed", "system_call", ""
    if code == -signal.SIGKILL and host_killed:
        return "infrastructure_fault", "", "The program was killed because the host ran out of memory."
    # A program that fakes a MemoryError can only spoil its own verdict.
    claims = code == 1 and stderr.rstrip().rsplit(b"\n", 1)[-1].startswith(b"MemoryError")
    if claims or (code != 0 and reply.peak_resident_bytes > _NEARLY * program.memory_bytes):
        return "memory", "memory", ""
    return ("exited" if code >= 0 else "killed"), "", ""

"""The verifier's side of one zygote process: start it, run one program at a time, kill it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Iterator

from services.verifier.sandbox import frames
from services.verifier.sandbox.layers import UMASK, zygote_command
from services.verifier.sandbox.results import Program, Result, classify

_START_SECONDS = 60.0
_GRACE_SECONDS = 10.0
"""Time beyond a program's longest wall time after which a zygote counts as hung."""
_ADD_SEALS = 1033
_SEALS = 1 | 2 | 4 | 8
"""F_ADD_SEALS, and F_SEAL_SEAL, _SHRINK, _GROW and _WRITE, which Python's fcntl module lacks in some builds."""


class ZygoteDied(Exception):
    """The zygote exited, hung, or never became ready."""


class Zygote:
    """A zygote process. After any exception it is unusable: kill it and start another."""

    def __init__(
        self, python: str, index: int, packages: tuple[str, ...], *, isolated: bool, landlock_abi: int
    ) -> None:
        self._arguments = (str(index), "isolated" if isolated else "bare", str(landlock_abi), *packages)
        self._python = python
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._killed = False
        self.num_runs = 0

    async def start(self) -> None:
        """Start the process and wait until it accepts programs. Raises `ZygoteDied`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._control = ours
        command, environment = zygote_command(self._python, str(theirs.fileno()), *self._arguments)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env=environment,
                cwd="/",
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                umask=UMASK,
                start_new_session=True,
            )
        finally:
            theirs.close()
        if self._was_killed():  # while it was starting
            await self.kill()
            raise ZygoteDied("The sandbox was closed.")
        await self._receive(_START_SECONDS)

    async def run(self, program: Program) -> Result:
        """Run one program. Raises `ZygoteDied`, or OSError if no memory file can be created."""
        if self._control is None or self._killed:
            raise ZygoteDied("The sandbox was closed.")
        self.num_runs += 1
        with _memory_files(program) as files:
            kills = num_oom_kills()
            frames.send_request(self._control, program.request(), files)
            reply = frames.unpack_reply(await self._receive(program.patience_seconds + _GRACE_SECONDS))
            stdout, stderr = (os.pread(descriptor, program.output_bytes, 0) for descriptor in files[2:])
        killed = os.WIFSIGNALED(reply.wait_status) and os.WTERMSIG(reply.wait_status) == signal.SIGKILL
        return classify(program, reply, stdout, stderr, host_killed=killed and num_oom_kills() > kills)

    async def kill(self) -> None:
        """Kill the process together with everything in its room, and wait until it is gone. Idempotent."""
        self._killed = True
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)  # wakes a run that waits for the reply
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._control is not None:
            self._control.close()

    def _was_killed(self) -> bool:
        return self._killed

    async def _receive(self, seconds: float) -> bytes:
        assert self._control is not None
        try:
            async with asyncio.timeout(seconds):
                data = await asyncio.get_running_loop().sock_recv(self._control, 4096)
        except TimeoutError:
            raise ZygoteDied(f"Timed out after {seconds:.0f} s waiting for the sandbox's zygote.") from None
        except OSError as error:
            raise ZygoteDied(f"The sandbox's zygote is gone: {error}.") from error
        if not data:
            raise ZygoteDied(f"The sandbox's zygote exited. {await self._last_words()}")
        return data

    async def _last_words(self) -> str:
        if self._process is None or self._process.stderr is None:
            return ""
        try:
            async with asyncio.timeout(1):
                return (await self._process.stderr.read(8192))[-500:].decode(errors="replace")
        except TimeoutError:
            return ""


def num_oom_kills() -> int:
    """Number of processes that the kernel has killed since it started because memory ran out, on the machine or in a
    container. 0 if the kernel does not say, so that no program's end is attributed to this.
    """
    try:
        with open("/proc/vmstat", "rb") as file:
            found = file.read().partition(b"\noom_kill ")[2]
        return int(found.split(maxsplit=1)[0]) if found else 0
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def _memory_files(program: Program) -> Iterator[list[int]]:
    """Source and input, sealed against changes, and two empty files for output, whose size RLIMIT_FSIZE bounds."""
    files: list[int] = []
    try:
        for content in (program.source.encode("utf-8", "surrogatepass"), program.stdin):
            descriptor = os.memfd_create("in", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            files.append(descriptor)
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.lseek(descriptor, 0, os.SEEK_SET)
            fcntl.fcntl(descriptor, _ADD_SEALS, _SEALS)
        for name in ("out", "err"):
            files.append(os.memfd_create(name, os.MFD_CLOEXEC))
        yield files
    finally:
        for descriptor in files:
            os.close(descriptor)

"""Real faults for tests: a queue server that fails over, a full disk."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.contracts.queue_users import OPERATOR
from services.runtime.address import free_port
from services.runtime.secret_files import FOLDER, queue_password
from tests.conftest import PROMPT_TIMERS
from turnout.cli.local.queue_server import answers, write_configuration

ENTER_AS_USER = ["--mount", "--user", "--preserve-credentials"]
NAMESPACES_OF = "TURNOUT_TESTS_NAMESPACES_OF"
"""Environment variable: a process whose user and mount namespaces the training program joins."""


def soon_full(command: list[str], room: Path) -> list[str]:
    """A program whose files may grow to the number of KiB in the file `room` at its start (or `unlimited`). To the
    program this looks like a full disk, without the right to mount one."""
    return ["sh", "-c", f"trap '' XFSZ; ulimit -f $(($(cat {room}) * 2)); exec {shlex.join(command)}"]


class Away(Redis):
    """A client whose server does not answer."""

    def __init__(self) -> None:
        super().__init__(port=free_port(), retry=Retry(NoBackoff(), 0))
        self.has_refused = asyncio.Event()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().execute_command(*args, **options)
        finally:
            self.has_refused.set()


PASSWORD = "the-same-for-all-of-them"


def operators_url(port: int) -> str:
    """URL of a `KillableValkey`, or of what forwards to it."""
    return f"redis://{OPERATOR}:{PASSWORD}@127.0.0.1:{port}/0"


class KillableValkey:
    """The real queue server with its configuration, which can be killed and restarted with the same data. All instances
    have the same password, so that one can replicate another and take its place."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.url = operators_url(self.port)
        self.log = home / "logs" / "valkey.log"
        self.log.parent.mkdir(parents=True)
        self.room = home / "room"
        self.room.write_text(str(1 << 30))
        (home / FOLDER).mkdir()
        (home / FOLDER / queue_password(OPERATOR)).write_text(PASSWORD)
        command = [*write_configuration(home, self.port), "--masteruser", OPERATOR, "--masterauth", PASSWORD]
        command += [part for name, value in PROMPT_TIMERS.items() for part in (f"--{name}", value)]
        self._command = soon_full(command, self.room)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        while answers(self.url):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Address:
    """A fixed address in front of changing servers: a TCP forwarder that acts like a virtual IP or DNS name."""

    def __init__(self, port: int) -> None:
        self.target = port
        self._connections: set[asyncio.StreamWriter] = set()

    async def open(self) -> int:
        """Listen, and return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def move(self, port: int) -> None:
        """Point to another server and close open connections. (Setting only `target` keeps them on the old one.)"""
        self.target = port
        for writer in list(self._connections):
            writer.close()

    async def close(self) -> None:
        self._server.close()
        self.move(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        self._connections |= {writer, to_server[1]}
        await asyncio.gather(_copy(reader, to_server[1]), _copy(to_server[0], writer))
        self._connections -= {writer, to_server[1]}


async def _copy(reader: Any, writer: Any) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


def enter_namespaces(pid: int) -> None:
    """Join the user and mount namespaces of `pid`, as `nsenter` does; the caller must be single-threaded."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("user", "mnt"):
        place = f"/proc/{pid}/ns/{kind}"
        if os.stat(place).st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino:
            continue
        with open(place) as namespace:
            if libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns {kind}")


class SmallDisk:
    """A separate file system, visible only to programs that enter its mount namespace."""

    def __init__(self, folder: Path, holder: int, flags: list[str]) -> None:
        self.folder = folder
        """Its mount point, for programs inside."""
        self.holder = holder
        """Pid of a process inside."""
        self.enter = ["nsenter", f"--target={holder}", *flags]
        """Prefix for the command of a program that should see the disk."""

    def leave_free(self, kibibytes: int) -> None:
        """Leave this much room: a disk that has filled up, or that an operator has cleaned up.

        Retries if it is refused, because more has been written since the check.
        """
        for _ in range(100):
            disk = os.statvfs(f"/proc/{self.holder}/root{self.folder}")
            used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024
            mount = ["mount", "-o", f"remount,size={used + kibibytes}k", str(self.folder)]
            done = subprocess.run([*self.enter, *mount], capture_output=True, text=True)
            if done.returncode == 0:
                return
        raise AssertionError(done.stderr)


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[SmallDisk]:
    """A disk of this many KiB at `folder`. It needs the right to mount, or to create a user namespace, which grants it;
    if the machine allows neither, the test is skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    hold = f'mount -t tmpfs -o size={kibibytes}k tmpfs "$0" && echo mounted && exec cat'
    for make, enter in ((["--mount"], ["--mount"]), (["--mount", "--user", "--map-root-user"], ENTER_AS_USER)):
        command = ["unshare", *make, "sh", "-c", hold, str(folder)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(
            command, **pipes
        ) as holder:  # exits when its input closes, at the latest with this process
            if holder.stdout is not None and holder.stdout.readline():
                yield SmallDisk(folder, holder.pid, enter)
                return
    pytest.skip("a small disk needs the right to mount, or to create user namespaces")

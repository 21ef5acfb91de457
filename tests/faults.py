"""Faults that tests bring about with the real thing: a queue server that fails over, a disk that is full."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from services.cli.queue_server import answers, write_configuration
from tests.conftest import free_port


def soon_full(command: list[str], room: Path) -> list[str]:
    """A program whose files may grow to as many KiB as the file `room` says when it starts (or `unlimited`): to the
    program a full disk, for which no right to mount is needed."""
    return ["sh", "-c", f"trap '' XFSZ; ulimit -f $(($(cat {room}) * 2)); exec {shlex.join(command)}"]


class KillableValkey:
    """The product's queue server, with its configuration; killed, it can be started again on the same data."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.log = home / "logs" / "valkey.log"
        self.log.parent.mkdir(parents=True)
        self.room = home / "room"
        self.room.write_text(str(1 << 30))
        self._command = soon_full(write_configuration(home, self.port), self.room)

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
    """An address that stays while the server behind it changes: a TCP forwarder, as a virtual IP or DNS name is."""

    def __init__(self, port: int) -> None:
        self.target = port
        self._connections: set[asyncio.StreamWriter] = set()

    async def open(self) -> int:
        """Listen; gives the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def move(self, port: int) -> None:
        """Point to another server; open connections break."""
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


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of its own that is soon full. `remount` makes it larger."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, kibibytes: int) -> None:
    """Room on a small disk, as after somebody has tidied up."""
    subprocess.run(["mount", "-o", f"remount,size={kibibytes}k", str(folder)], check=True)

"""The evidence: what an attack could have touched, looked at from outside. Standard library only, so that it also runs
under a bare interpreter as another user (as_user.py)."""

from __future__ import annotations

import os
import secrets
import select
import socket
import tempfile
from pathlib import Path

from services.verifier.sandbox import sandbox
from services.verifier.sandbox.sandbox import Program, Result
from tests.services.verifier.sandbox.corpus import Attack, Marks

CPU_SECONDS = 0.15
WALL_SECONDS = 10.0
MEMORY_BYTES = 64 << 20
OUTPUT_BYTES = 1 << 20
_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/", "/root", "/home")


class Evidence:
    """A canary file, a secret in our memory and environment, and listeners."""

    def __init__(self) -> None:
        self.secret = "CANARY" + secrets.token_hex(16)
        self.held_in_memory = [self.secret * 20]
        os.environ["TURNOUT_TEST_CANARY"] = self.secret
        self.folder = Path(tempfile.mkdtemp(prefix="turnout-canary-"))
        self.folder.chmod(0o777)  # only the sandbox protects this file from a program
        self.canary = self.folder / f"{secrets.token_hex(8)}.txt"
        self.canary.write_text(self.secret)
        self.canary.chmod(0o666)
        self._before = self._stat()
        self.listeners = [socket.create_server(("127.0.0.1", 0))]
        port = self.listeners[0].getsockname()[1]
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", port))
        abstract = socket.socket(socket.AF_UNIX)
        name = f"turnout-{secrets.token_hex(8)}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        self.listeners += [datagrams, abstract]
        drop = f"turnout-drop-{secrets.token_hex(8)}"
        self.marks = Marks(str(self.canary), port, name, os.getpid(), sandbox.__file__, drop)

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()
        self.canary.unlink()
        self.folder.rmdir()
        del os.environ["TURNOUT_TEST_CANARY"]

    def victim(self) -> Program:
        """Another user's program, whose source and input are secret. It runs in the same zygote before an attack."""
        return Program(
            f"x = {self.secret!r}\nprint(input()[:6])", stdin=self.secret.encode(), wall_seconds=WALL_SECONDS
        )

    def program(self, attack: Attack) -> Program:
        """The attack. Only attacks that wait get a short wall time, since a busy machine does not prove containment."""
        waits = attack.expect == {"timeout_wall"}
        return Program(
            self.marks.fill(attack.source),
            stdin=b"4 5\n",
            wall_seconds=0.3 if waits else WALL_SECONDS,
            cpu_seconds=CPU_SECONDS,
            memory_bytes=MEMORY_BYTES,
            output_bytes=OUTPUT_BYTES,
        )

    def problems(self, attack: Attack, result: Result) -> list[str]:
        """All evidence against containment; empty if the attack was contained."""
        found = []
        output = result.stdout + result.stderr
        if result.status not in attack.expect:
            found.append(f"status {result.status} ({result.fault}), expected {sorted(attack.expect)}")
        if attack.violation and attack.violation not in result.violations:
            found.append(f"violations {result.violations}, expected {attack.violation}")
        if b"ESCAPED" in result.stdout:
            found.append("the program says that it escaped")
        if self.secret.encode() in output:
            found.append("the secret is in the output")
        if max(len(result.stdout), len(result.stderr)) > OUTPUT_BYTES:
            found.append("too much output")
        if result.cpu_seconds > CPU_SECONDS + 1.0:
            found.append(f"{result.cpu_seconds:.2f} s of CPU time")
        if attack.most_printed >= 0 and not 0 <= int(result.stdout.split()[-1]) <= attack.most_printed:
            found.append(f"got {result.stdout!r}, at most {attack.most_printed} allowed")
        if os.listdir(self.folder) != [self.canary.name] or self._stat() != self._before:
            found.append("the canary or its folder changed")
        if select.select(self.listeners, [], [], 0)[0]:
            found.append("something reached a listener")
        if any(
            os.path.exists(f"{folder}/{self.marks.drop}")
            for folder in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/", "/root")
        ):
            found.append("a file was left behind")
        return found

    def _stat(self) -> tuple[str, int, int, int]:
        status = self.canary.stat()
        return self.canary.read_text(), status.st_mode, status.st_mtime_ns, status.st_uid


def living(root: int) -> dict[int, str]:
    """Command lines by id of processes (not zombies) that descend from `root` or share a session with one."""
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent, _, session = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if state != "Z":
            parents[int(name)], sessions[int(name)] = int(parent), int(session)
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    family.discard(root)
    own = {sessions[pid] for pid in family if pid in sessions} - {os.getsid(0)}
    return {pid: _command(pid) for pid in parents if pid in family or sessions[pid] in own}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return "?"

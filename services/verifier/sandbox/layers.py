"""Finds out which sandbox layers this machine's kernel supports, by trying each in a throwaway process.

Resource limits, no_new_privs, seccomp and Landlock are required. Namespaces are used if they are allowed; without them
a program cannot write any file, and can query names and sizes (but not contents) of files whose path it guesses.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from services.contracts.errors import UnavailableError
from services.verifier.sandbox import kernel, landlock, room, seccomp

MINIMUM_LANDLOCK = 3
"""Without namespaces: the first version that can forbid truncating files (kernel 6.2)."""
MINIMUM_LANDLOCK_ISOLATED = 1
"""With a private read-only root, which already prevents truncation (kernel 5.13)."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers that work on this machine. `landlock_abi` is 0 without Landlock."""

    rlimits: bool = False
    no_new_privs: bool = False
    landlock_abi: int = 0
    seccomp: bool = False
    user_namespace: bool = False
    pid_namespace: bool = False
    net_namespace: bool = False
    mount_namespace: bool = False
    ipc_namespace: bool = False
    private_root: bool = False
    """Whether the namespaces work together: our own root folder could be built and entered."""
    detail: str = ""
    """Why the private root could not be built."""

    @property
    def isolated(self) -> bool:
        """Whether all namespaces are in use."""
        return self.private_root

    @property
    def active(self) -> list[str]:
        """Names of the active layers, for logs, /healthz and the doctor."""
        names = [name for name, value in asdict(self).items() if value is True]
        return [*names, f"landlock_abi_{self.landlock_abi}"] if self.landlock_abi else names

    @property
    def missing(self) -> dict[str, str]:
        """Remedies by missing required layer; empty if untrusted code may run."""
        needed = MINIMUM_LANDLOCK_ISOLATED if self.isolated else MINIMUM_LANDLOCK
        remedies = {}
        if not self.rlimits:
            remedies["rlimits"] = "Run on Linux 5.13 or later."
        if not self.no_new_privs:
            remedies["no_new_privs"] = "Run on Linux 5.13 or later."
        if not self.seccomp:
            remedies["seccomp"] = (
                "Use a kernel with CONFIG_SECCOMP_FILTER on x86_64 or aarch64; in a container, allow the seccomp call."
            )
        if self.landlock_abi < needed:
            remedies["landlock"] = (
                f"Use a kernel with Landlock version {needed} or later (Linux {'5.13' if needed == 1 else '6.2'}) that "
                "lists landlock in /sys/kernel/security/lsm (boot option lsm=landlock,...); in a container, use "
                "deploy/seccomp/turnout.json, which allows the Landlock calls and user namespaces."
            )
        return remedies

    @property
    def advice(self) -> str:
        """How to enable the optional layers that are missing; empty if none is missing."""
        if self.isolated:
            return ""
        return (
            f"Namespaces are not allowed here ({self.detail}). Set sysctl user.max_user_namespaces above 0 and, on "
            "Ubuntu, kernel.apparmor_restrict_unprivileged_userns=0; in a container, use "
            "--security-opt seccomp=deploy/seccomp/turnout.json."
        )

    def require(self) -> None:
        """Raise `UnavailableError` with the remedies if a required layer is missing."""
        if self.missing:
            raise UnavailableError(
                f"This machine cannot run untrusted code. Missing sandbox layers: {', '.join(self.missing)}.",
                remedy=" ".join(dict.fromkeys(self.missing.values())),
            )


UMASK = 0o022
"""For every zygote: with the verifier's own umask, programs, which run as another user, could not enter their root."""


def zygote_command(python: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Command line and whole environment of a zygote: no site packages, no .pth files, fixed hashes."""
    root = Path(__file__).resolve().parents[3]
    command = [python, "-S", "-s", "-P", "-B", "-X", "utf8", "-m", "services.verifier.sandbox.zygote", *arguments]
    return command, {"PYTHONPATH": str(root), "PYTHONHASHSEED": "0"}


@functools.cache
def probe(python: str = sys.executable) -> Layers:
    """The layers of this machine, cached; takes about 0.2 s. Raises `UnavailableError` if the probe fails."""
    command, environment = zygote_command(python, "--probe")
    try:
        done = subprocess.run(
            command, env=environment, cwd="/", umask=UMASK, capture_output=True, timeout=60, check=True
        )
        return Layers(**json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", None) or b""
        raise UnavailableError(
            f"The sandbox could not probe this machine: {error} {said.decode(errors='replace')[-400:]}",
            remedy=f"Check that {python} starts and that this user can read the services package.",
        ) from error


def measure() -> dict[str, object]:
    """The fields of `Layers`, tried one by one. Runs in a separate process (zygote.py --probe)."""
    version = landlock.abi()
    single = {
        "user_namespace": 0,
        "pid_namespace": kernel.CLONE_NEWPID,
        "net_namespace": kernel.CLONE_NEWNET,
        "mount_namespace": kernel.CLONE_NEWNS,
        "ipc_namespace": kernel.CLONE_NEWIPC,
    }
    found: dict[str, object] = {
        "rlimits": not _fault_of(_try_limits),
        "no_new_privs": not _fault_of(lambda: kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)),
        "landlock_abi": version if version and not _fault_of(lambda: _try_landlock(version)) else 0,
        "seccomp": not _fault_of(_try_seccomp),
    }
    for name, flag in single.items():
        found[name] = not _fault_of(functools.partial(_try_namespace, flag))
    fault = _fault_of(_try_room)
    return {**found, "private_root": not fault, "detail": fault}


def _fault_of(attempt: Callable[[], object]) -> str:
    """Run the attempt in a forked process. Returns its error, or an empty text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            attempt()
            code = 0
        except BaseException as error:  # noqa: BLE001  # the error is the result
            os.write(writing, str(error).encode()[:200] or b"unknown fault")
        os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    said = os.read(reading, 200).decode(errors="replace")
    os.close(reading)
    return "" if status == 0 else said or f"wait status {status}"


def _try_limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    assert resource.getrlimit(resource.RLIMIT_AS) == (1 << 30, 1 << 30)
    kernel.close_from(1000)
    os.close(os.pidfd_open(os.getpid()))


def _try_landlock(version: int) -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    landlock.restrict(landlock.create(version))
    try:
        os.listdir("/")
    except PermissionError:
        return
    raise AssertionError("Landlock accepted its rules but did not enforce them")


def _try_seccomp() -> None:
    assert seccomp.supported(), f"the system calls of {kernel.machine} are unknown"
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(seccomp.program(os.getpid()))
    try:
        socket.socket()
    except PermissionError:
        return
    raise AssertionError("the filter was accepted but not enforced")


def _try_namespace(flag: int) -> None:
    room.become_unprivileged(0)
    kernel.unshare(kernel.CLONE_NEWUSER | flag)


def _try_room() -> None:
    """Do everything that a zygote and its child do with namespaces."""
    built = room.enter(0, (), isolated=True, landlock_abi=landlock.abi())
    built.begin_run()
    child = os.fork()
    if child == 0:
        built.shut()
        os._exit(0 if os.getpid() == 1 else 1)
    built.end_fork()
    _, status = os.waitpid(child, 0)
    if status:
        raise OSError(f"a nested namespace was refused (wait status {status})")

"""Hosts as Linux namespaces: each has a network of its own with one cable to a switch, a host name, and its own files.

Everything is in network namespaces of this process's name, the switch as well, so deleting them leaves nothing.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NETWORK = "10.213.7"
_CLONE_NEWNET = 0x40000000
STOP_SECONDS = 20.0


class MissingError(Exception):
    """This machine cannot have hosts of this kind."""


@dataclass(frozen=True, slots=True)
class Host:
    """One host."""

    name: str
    address: str
    namespace: str
    files: Path
    """What the host sees as its home, from outside."""

    @property
    def cable(self) -> str:
        """The switch's end of it."""
        return f"port-{self.name}"


@dataclass(slots=True)
class Network:
    """Some hosts at one switch."""

    folder: Path
    prefix: str
    hosts: dict[str, Host] = field(default_factory=dict)
    _processes: list[psutil.Popen] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """Where each host has its own files: the same path everywhere, other files on each."""
        return self.folder / "home"

    @property
    def switch(self) -> str:
        return f"{self.prefix}-switch"

    def add(self, name: str) -> Host:
        """Connect a new host."""
        number = len(self.hosts) + 1
        host = Host(name, f"{NETWORK}.{number}", f"{self.prefix}-{name}", self.folder / "hosts" / name)
        host.files.mkdir(parents=True)
        self.hosts[name] = host
        ip("netns", "add", host.namespace)
        ip(
            "-n",
            self.switch,
            "link",
            "add",
            host.cable,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            host.namespace,
        )
        ip("-n", self.switch, "link", "set", host.cable, "master", "switch", "up")
        ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        ip("-n", host.namespace, "link", "set", "eth0", "up")
        ip("-n", host.namespace, "link", "set", "lo", "up")
        return host

    def cut(self, host: Host) -> None:
        """Pull the host's cable."""
        ip("-n", self.switch, "link", "set", host.cable, "down")

    def reconnect(self, host: Host) -> None:
        """Plug it in again."""
        ip("-n", self.switch, "link", "set", host.cable, "up")

    def slow_down(self, host: Host, rate: str) -> None:
        """Let no more than `rate` through to the host."""
        command = ("qdisc", "replace", "dev", host.cable, "root", "tbf", "rate", rate, "burst", "16kb", "latency", "1s")
        run("tc", "-n", self.switch, *command)

    def speed_up(self, host: Host) -> None:
        run("tc", "-n", self.switch, "qdisc", "del", "dev", host.cable, "root")

    def start(self, host: Host, command: Sequence[str], environment: dict[str, str], log: str) -> psutil.Popen:
        """Start a process on a host. Its output is in `<folder>/logs/<log>.log`."""
        view = (
            f"hostname host-{host.name} && mount --bind {host.files} {self.home} && "
            f'mount -t tmpfs none {self.folder / "hosts"} && exec "$@"'
        )
        within = ["ip", "netns", "exec", host.namespace, "unshare", "--uts", "--mount", "--propagation", "private"]
        (self.folder / "logs").mkdir(exist_ok=True)
        with (self.folder / "logs" / f"{log}.log").open("ab") as file:
            process = psutil.Popen(
                [*within, "sh", "-c", view, "sh", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def pids(self, host: Host) -> list[int]:
        """All processes of a host."""
        found = subprocess.run(["ip", "netns", "pids", host.namespace], check=True, capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def stop(self, processes: Sequence[psutil.Popen]) -> None:
        """End processes that `start` began, and their children: SIGTERM, then SIGKILL."""
        trees = [process for process in processes if process.is_running()]
        family = [found for tree in trees for found in (tree, *tree.children(recursive=True))]
        for process in trees:
            process.terminate()
        psutil.wait_procs(trees, STOP_SECONDS)
        for member in family:
            if member.is_running():
                member.kill()
        psutil.wait_procs(family, STOP_SECONDS)

    def close(self) -> None:
        self.stop(self._processes)
        for namespace in (*(host.namespace for host in self.hosts.values()), self.switch):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A switch without hosts; all of it is removed at the end. Raises `MissingError` with what this machine lacks."""
    check_machine()
    found = Network(folder, f"turnout-{os.getpid()}")
    found.home.mkdir(parents=True)
    try:
        try:
            ip("netns", "add", found.switch)
            ip("-n", found.switch, "link", "add", "switch", "type", "bridge")
            ip("-n", found.switch, "link", "set", "switch", "up")
        except subprocess.CalledProcessError as error:
            raise MissingError(f"Network namespaces do not work here: {error.stderr.strip()}") from error
        yield found
    finally:
        found.close()


def check_machine() -> None:
    """Raise `MissingError` with what this machine lacks."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise MissingError(
            "Hosts as network namespaces need Linux and root. Run it as root, in a virtual machine perhaps."
        )
    for program, package in (("ip", "iproute2"), ("tc", "iproute2"), ("unshare", "util-linux"), ("mount", "mount")):
        if shutil.which(program) is None:
            raise MissingError(f"The program {program} is missing. Install Debian's {package}.")


def enter(host: Host) -> None:
    """Move this thread, and what it starts, into a host's network."""
    with open(f"/run/netns/{host.namespace}", "rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise MissingError(f"setns failed: {os.strerror(ctypes.get_errno())}.")


def ip(*arguments: str) -> None:
    run("ip", *arguments)


def run(*command: str) -> None:
    """Raises `CalledProcessError`."""
    subprocess.run(command, check=True, capture_output=True, text=True)

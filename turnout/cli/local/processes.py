"""The launcher's processes: how to identify them, and how to stop them and no others.

A process is identified by its pid and its start time together, since the system reuses pids. Everything that one launch
starts also inherits `TURNOUT_LAUNCH`, a random string in its environment, so that a child that outlived its parent (an
engine's worker, for example) is still found and no other process is touched.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil

from services.contracts.errors import ConfigurationError
from services.runtime.files import write_atomically

LAUNCH_VARIABLE = "TURNOUT_LAUNCH"
STATE_FILE = "processes.json"
START_TOLERANCE_SECONDS = 0.05
"""The kernel's start time is exact to a clock tick; this only absorbs rounding."""


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One process as written to the state file."""

    instance: str
    pid: int
    started: float
    """Seconds from the system's boot to its start: a time of day would change whenever the clock is set."""
    boot: str = ""
    """Id of the boot that `started` refers to."""
    num_restarts: int = 0


class HomeState(msgspec.Struct, frozen=True, kw_only=True):
    """What is running in one home: the content of `<home>/processes.json`."""

    launch: str
    supervisor: ProcessRecord
    api_url: str
    redis_url: str
    processes: list[ProcessRecord] = []
    ready: bool = False
    """True once every service has reported."""

    @property
    def everything(self) -> list[ProcessRecord]:
        """All recorded processes, the supervisor last."""
        return [*self.processes, self.supervisor]


def read_state(home: Path) -> HomeState | None:
    """The home's state; None if nothing was started there.

    Raises:
        ConfigurationError: the file exists but is not a state file.
    """
    path = home / STATE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=HomeState)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        raise ConfigurationError(
            f"The state file {path} cannot be read: {error}.", remedy="Delete it if nothing is running in that home."
        ) from error


def write_state(home: Path, state: HomeState) -> None:
    """Replace the home's state file atomically."""
    write_atomically(home / STATE_FILE, msgspec.json.format(msgspec.json.encode(state)), mode=0o600)


def remove_state(home: Path) -> None:
    (home / STATE_FILE).unlink(missing_ok=True)


def record_of(pid: int, instance: str, num_restarts: int = 0) -> ProcessRecord:
    """The record of a living process."""
    started = _seconds_since_boot(psutil.Process(pid))
    return ProcessRecord(instance=instance, pid=pid, started=started, boot=_boot(), num_restarts=num_restarts)


def _seconds_since_boot(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()


def _boot() -> str:
    """Id of the system's current boot; empty if it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is(process: psutil.Process, record: ProcessRecord) -> bool:
    """Whether this is the recorded process. Raises `psutil.Error` if it is gone."""
    apart = abs(_seconds_since_boot(process) - record.started)
    return apart <= START_TOLERANCE_SECONDS and record.boot == _boot()


def find(record: ProcessRecord) -> psutil.Process | None:
    """The recorded process if it is still running: same pid and same start time, and not a zombie."""
    try:
        process = psutil.Process(record.pid)
        return process if _is(process, record) and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def launched(launch: str) -> list[psutil.Process]:
    """Every live process whose environment has this launch, whatever its parent."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(LAUNCH_VARIABLE) == launch and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # gone, or not readable by this user
    return found


def group_of(record: ProcessRecord) -> list[psutil.Process]:
    """The live members of the process group that a recorded service leads, even after the leader has exited.

    Empty if the pid has been reused (which happens only once the group is empty), or
    the machine was restarted.
    """
    if record.boot != _boot():
        return []
    try:
        if not _is(psutil.Process(record.pid), record):
            return []
    except psutil.Error:
        pass  # the leader has exited
    members = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == record.pid and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (psutil.Error, OSError):
            continue
    return members


def alive(state: HomeState) -> list[psutil.Process]:
    """What is left of a home's processes: recorded ones, their groups and children, and those with the launch's
    variable.

    It looks in several ways, because programs may leave their group, outlive their parent or overwrite their
    environment when they change their title.
    """
    found = {process.pid: process for process in launched(state.launch)}
    for record in state.everything:
        process = find(record)
        if process is not None:
            found[process.pid] = process
    for record in state.processes:
        found |= {process.pid: process for process in group_of(record)}
    for process in list(found.values()):
        if process.pid == state.supervisor.pid:
            continue  # it may be part of a program that has other children
        try:
            found |= {child.pid: child for child in process.children(recursive=True)}
        except psutil.Error:
            continue
    return [process for process in found.values() if process.pid != os.getpid()]


def send(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    """Signal processes, skipping those that have exited (psutil checks the start time)."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def end(processes: Sequence[psutil.Process], grace_seconds: float) -> list[psutil.Process]:
    """Send SIGTERM, wait up to `grace_seconds`, then send SIGKILL. Returns the processes that survive, normally
    none."""
    send(processes, signal.SIGTERM)
    left = _survivors(processes, grace_seconds)
    send(left, signal.SIGKILL)
    return _survivors(left, 5)


def _survivors(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Processes that are still running after at most so many seconds. A zombie has ended, even if none reaps it: in a
    container, process 1 often does not."""
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if not _has_ended(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def end_home(home: Path, grace_seconds: float = 20.0) -> list[str]:
    """Stop everything that the home's state file names, with children. Returns the names of what was stopped.

    The supervisor is stopped first, which stops its services in order. What remains is stopped directly, with the queue
    server last so that the others can still sign off.
    """
    state = read_state(home)
    if state is None:
        return []
    names = [record.instance for record in state.processes if find(record) is not None]
    supervisor = find(state.supervisor)
    if supervisor is not None:
        send([supervisor], signal.SIGTERM)
        _survivors([supervisor], grace_seconds + 10)
    queue_pids = {record.pid for record in state.processes if record.instance == "valkey"}
    rest = alive(state)
    end([process for process in rest if process.pid not in queue_pids], grace_seconds)
    end(alive(state), grace_seconds)
    remove_state(home)
    return names


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True

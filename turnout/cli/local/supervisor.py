"""Starts the processes of a plan, restarts those that die, and stops them all.

A plain state machine without threads: whoever owns a `Supervisor` calls `tick` a few times a second (`turnout up` from
its table, `turnout demo` from its progress view). Every child leads its own process group, so Ctrl-C in the
terminal reaches only the owner, and what a dead child leaves behind can be stopped before it is restarted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from services.contracts.errors import ConflictError, TurnoutError, UnavailableError
from services.contracts.pauses import growing_pause
from services.runtime.files import lock
from services.runtime.queue.server_log import queue_server_fault
from turnout.cli.local.environment import inherited
from turnout.cli.local.home import OTHERS, private
from turnout.cli.local.plan import Child, Plan, check_plan
from turnout.cli.local.processes import HomeState, alive, end, record_of, remove_state, write_state
from turnout.cli.local.queue_server import INSTANCE as VALKEY
from turnout.cli.local.queue_server import answers, write_configuration

RESTART_SECONDS_FIRST = 0.5
RESTART_SECONDS_MOST = 30.0
HEALTHY_SECONDS = 60.0
"""A process that ran this long is restarted after the shortest delay."""
NUM_START_TRIES = 3
EXIT_CODE_NAMED_FAULT = 2
"""A service that exits with this code has printed what is wrong, so at start it is not retried."""
LOG_BYTES_KEPT = 32 * 2**20


class StartFailedError(TurnoutError):
    """A service could not be started."""

    title = "Start failed"


@dataclass(slots=True)
class Running:
    """One child's current state."""

    child: Child
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    """By the monotonic clock."""
    num_restarts: int = 0
    num_short_lives: int = 0
    """Lives since the last one of at least `HEALTHY_SECONDS`, including that one."""
    start_again_at: float = 0.0
    seen: bool = False
    """True once the service has reported."""
    log_offset: int = 0
    exit_code: int | None = None


class Supervisor:
    """The processes of one home."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.children: list[Running] = []
        self._lock: IO[Any] | None = None
        self._supervisor = record_of(os.getpid(), "supervisor")
        self._ready = False

    def start(self) -> None:
        """Check, then start the queue server and every service. If anything fails, nothing is left running.

        Raises:
            TurnoutError: why it failed, with the remedy.
        """
        check_plan(self.plan)
        self._lock = _take_lock(self.plan.home)
        try:
            if self.plan.redis_port is not None:
                command = write_configuration(self.plan.home, self.plan.redis_port)
                self._spawn(self._add(Child(VALKEY, command, {"TURNOUT_LAUNCH": self.plan.launch})))
                self._wait_for_queue()
            for child in self.plan.children:
                self._spawn(self._add(child))
        except BaseException:
            self.stop(grace_seconds=2)
            raise

    def tick(self, seen: set[str] | None = None) -> None:
        """Check the children once. `seen`: instances whose heartbeat has been read.

        Raises:
            StartFailedError: a service exited repeatedly, or with a named fault, before it ever reported.
        """
        now = time.monotonic()
        for running in self.children:
            if seen and running.child.instance in seen:
                running.seen = True
            if running.process is None:
                if now >= running.start_again_at:
                    running.num_restarts += 1
                    self._spawn(running)
            elif _has_ended(running.process):
                self._bury(running, now)
        ready = all(running.seen for running in self.children)
        if ready and not self._ready:
            self._ready = True
            self._write_state()

    @property
    def ready(self) -> bool:
        """True once every service has reported."""
        return self._ready

    def stop(self, grace_seconds: float = 20.0) -> None:
        """Stop everything: services first, the queue server last. Safe to call more than once."""
        services = [running for running in self.children if running.child.instance != VALKEY]
        self._end(services, grace_seconds)
        self._end([running for running in self.children if running.child.instance == VALKEY], grace_seconds)
        state = self._state()
        end(alive(state), 1.0)
        self.children.clear()
        if self._lock is not None:
            remove_state(self.plan.home)
            self._lock.close()
            self._lock = None

    def _add(self, child: Child) -> Running:
        log = self.plan.logs / f"{child.instance}.log"
        running = Running(child, log, seen=child.instance == VALKEY)
        self.children.append(running)
        return running

    def _spawn(self, running: Running) -> None:
        _rotate(running.log)
        with open(running.log, "ab", opener=private) as log:
            running.log_offset = log.tell()
            running.process = subprocess.Popen(
                running.child.command,
                cwd=self.plan.working_folder,
                env=inherited(os.environ, running.child.service) | running.child.environment,
                umask=OTHERS,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running.started_at = time.monotonic()
        self._write_state()

    def _bury(self, running: Running, now: float) -> None:
        """Record a child's death, stop what it left behind, and schedule its restart."""
        assert running.process is not None
        _kill_group(running.process.pid)
        code = running.exit_code = running.process.wait()
        lived = time.monotonic() - running.started_at
        running.process = None
        hopeless = code == EXIT_CODE_NAMED_FAULT or running.num_restarts + 1 >= NUM_START_TRIES
        if not running.seen and hopeless:
            raise StartFailedError(
                f"The service {running.child.instance} could not be started: {last_words(running)}",
                remedy=f"Its log is {running.log}.",
            )
        running.num_short_lives = 1 if lived >= HEALTHY_SECONDS else running.num_short_lives + 1
        running.start_again_at = now + growing_pause(
            RESTART_SECONDS_FIRST, running.num_short_lives, RESTART_SECONDS_MOST
        )

    def _wait_for_queue(self, seconds: float = 60.0) -> None:
        """Wait until the queue server has read its file and answers."""
        running = self.children[0]
        assert running.process is not None
        deadline = time.monotonic() + seconds
        while (reason := answers(self.plan.redis_url)) != "":
            if _has_ended(running.process) or time.monotonic() > deadline:
                raise UnavailableError(
                    f"The queue server did not come up: {why_ended(running, self.plan.home) or reason}",
                    remedy=f"Its log is {running.log}, and its data is in {self.plan.home / 'queue'}.",
                )
            time.sleep(0.05)

    def _end(self, group: list[Running], grace_seconds: float) -> None:
        processes = [running.process for running in group if running.process is not None]
        for process in processes:
            if not _has_ended(process):
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while time.monotonic() < deadline and not all(_has_ended(process) for process in processes):
            time.sleep(0.05)
        for process in processes:
            _kill_group(process.pid)
            process.wait()
        for running in group:
            running.process = None

    def _state(self) -> HomeState:
        records = []
        for running in self.children:
            if running.process is None:
                continue
            try:
                records.append(record_of(running.process.pid, running.child.instance, running.num_restarts))
            except psutil.NoSuchProcess:
                continue
        plan = self.plan
        return HomeState(
            launch=plan.launch,
            supervisor=self._supervisor,
            api_url=plan.api_url,
            redis_url=plan.redis_url,
            processes=records,
            ready=self._ready,
        )

    def _write_state(self) -> None:
        write_state(self.plan.home, self._state())


def why_ended(running: Running, home: Path) -> str:
    """Why a child exited, as far as it or its log says."""
    fault = queue_server_fault(home) if running.child.instance == VALKEY else ""
    return fault or last_words(running)


def last_words(running: Running) -> str:
    """The last line that a child wrote since it was started, shortened: usually why it exited."""
    try:
        with running.log.open("rb") as log:
            log.seek(max(running.log_offset, running.log.stat().st_size - 8192))
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1][-600:] if lines else f"it exited silently with code {running.exit_code}."


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a child has exited, without reaping it: its pid is not reused, so its group can still be signalled."""
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _kill_group(pid: int) -> None:
    """SIGKILL a child's whole group. Call before the child is reaped, or the number may belong to another process."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _take_lock(home: Path) -> IO[Any]:
    """An exclusive lock on the home for as long as the returned file is open."""
    file = os.fdopen(private(home / "lock", os.O_WRONLY | os.O_CREAT), "w")
    if lock(file):
        return file
    file.close()
    raise ConflictError(
        f"Another launcher is starting or stopping in the home {home}.", remedy="Wait a moment and try again."
    )


def _rotate(log: Path) -> None:
    """Keep one older log file, so that logs do not grow indefinitely over restarts."""
    if log.exists() and log.stat().st_size > LOG_BYTES_KEPT:
        log.replace(log.with_suffix(".log.1"))

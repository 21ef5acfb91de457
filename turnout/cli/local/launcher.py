"""`turnout up` and `turnout down`: a whole deployment on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.contracts.errors import TurnoutError, UnavailableError
from services.contracts.heartbeat import ServiceRecord
from services.contracts.plain_text import in_line
from services.runtime.queue.server_log import queue_server_fault
from turnout.cli.exits import EXIT_OK
from turnout.cli.interrupts import Interrupts
from turnout.cli.local.heartbeats import Heartbeats
from turnout.cli.local.home import private
from turnout.cli.local.plan import Counts, Plan, check_plan, make_plan
from turnout.cli.local.processes import HomeState, alive, end_home, read_state
from turnout.cli.local.queue_server import INSTANCE as VALKEY
from turnout.cli.local.supervisor import Supervisor
from turnout.cli.terminal import console, say, say_json

if TYPE_CHECKING:
    from rich.table import Table

TICK_SECONDS = 0.25
HEARTBEAT_READ_SECONDS = 1.0


class Deployment:
    """A supervisor and its services' heartbeats. Call `tick` a few times a second."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.supervisor = Supervisor(plan)
        self.records: dict[str, ServiceRecord] = {}
        self._heartbeats: Heartbeats | None = None
        self._read_at = 0.0

    def start(self) -> None:
        """Start everything. Raises `TurnoutError`, after which nothing is left running."""
        self.supervisor.start()
        self._heartbeats = Heartbeats(self.plan.redis_url)

    def tick(self) -> None:
        """Supervise the processes and read the heartbeats: each time until all have reported, then once a second.

        Raises:
            StartFailedError: see `Supervisor.tick`.
        """
        now = time.monotonic()
        if self._heartbeats is not None and not (self.ready and now - self._read_at < HEARTBEAT_READ_SECONDS):
            self._read_at = now
            own = self.supervisor.children[0 if self.plan.redis_port is None else 1 :]  # all but the queue server
            self.records = self._heartbeats.read(
                {running.child.instance: running.process.pid for running in own if running.process is not None}
            )
        self.supervisor.tick({name for name, record in self.records.items() if _is_up(record)})

    @property
    def ready(self) -> bool:
        return self.supervisor.ready

    def stop(self, grace_seconds: float = 20.0) -> None:
        if self._heartbeats is not None:
            self._heartbeats.close()
        self.supervisor.stop(grace_seconds)


def up(home: Path, counts: Counts, *, api_port: int, as_json: bool) -> int:
    """Run a deployment in the foreground until a signal; returns the exit code."""
    plan = make_plan(home, counts, api_port=api_port)
    deployment = Deployment(plan)
    with Interrupts() as interrupts:
        try:
            deployment.start()
            _look_after(deployment, interrupts, as_json)
        finally:
            if not as_json:
                say("Stopping ...")
            deployment.stop(grace_seconds=2 if interrupts.urgent else 20)
    return EXIT_OK


def _look_after(deployment: Deployment, interrupts: Interrupts, as_json: bool) -> None:
    if sys.stdout.isatty() and not as_json:
        from rich.live import Live

        with Live(status_table(deployment), console=console(), refresh_per_second=4) as live:
            while not interrupts.requested:
                deployment.tick()
                live.update(status_table(deployment))
                interrupts.sleep(TICK_SECONDS)
        return
    said: dict[str, str] = {}
    announced = False
    while not interrupts.requested:
        deployment.tick()
        for row in status_rows(deployment):
            if said.get(row["instance"]) != row["state"] and not as_json:
                said[row["instance"]] = row["state"]
                say(f"{row['instance']}: {row['state']}")
        if deployment.ready and not announced:
            announced = True
            say_ready(deployment.plan.api_url, deployment.plan.home, as_json, detached=False)
        interrupts.sleep(TICK_SECONDS)


def say_ready(api_url: str, home: Path, as_json: bool, *, detached: bool) -> None:
    """Print the API's address."""
    if as_json:
        say_json({"ready": True, "api_url": api_url, "home": str(home)})
        return
    say(f"Ready. API and page: {api_url}   logs: {home / 'logs'}")
    from turnout.client.calls import DEFAULT_URL

    if api_url != (os.environ.get("TURNOUT_API_URL") or DEFAULT_URL).rstrip("/"):
        say(f"Other commands find it with `export TURNOUT_API_URL={api_url}`.")
    say(f"Stop it with `turnout down --home {home}`." if detached else "Stop it with Ctrl-C.")


def up_detached(home: Path, counts: Counts, *, api_port: int, as_json: bool, wait_seconds: float) -> int:
    """Start the supervisor in the background and wait until every service has reported."""
    plan = make_plan(home, counts, api_port=api_port)
    check_plan(plan)
    log = plan.logs / "supervisor.log"
    command = [sys.executable, "-m", "turnout.cli.main", "up", "--home", str(plan.home), "--api-port"]
    command += [plan.api_url.rsplit(":", 1)[1], *counts.options()]
    with open(log, "wb", opener=private) as file:
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + wait_seconds
    try:
        while True:
            state = read_state(plan.home)
            if state is not None and state.supervisor.pid == process.pid and state.ready:
                break
            if process.poll() is not None:
                raise UnavailableError(_error_in(log), remedy="")
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"Timed out after {wait_seconds:.0f} s waiting for the services; all were stopped.",
                    remedy=f"See the logs in {plan.logs}, or allow more time with --wait.",
                )
            time.sleep(0.1)
    except BaseException:
        if process.poll() is None:
            process.terminate()
            process.wait()
        raise
    say_ready(plan.api_url, plan.home, as_json, detached=True)
    return EXIT_OK


def down(home: Path, *, as_json: bool) -> int:
    """Stop what is running in a home. Returns the exit code; a home in which nothing is running is not an error."""
    home = home.resolve()
    state = read_state(home)
    names = end_home(home)
    left = [] if state is None else alive(state)
    if left:
        raise TurnoutError(
            f"{len(left)} processes of {home} could not be stopped: {', '.join(str(process.pid) for process in left)}.",
            remedy="They may belong to another user, or be stuck in the kernel.",
        )
    if as_json:
        say_json({"home": str(home), "ended": names})
    else:
        say(f"Stopped: {', '.join(names)}." if names else f"Nothing was running in {home}.")
    return EXIT_OK


def _is_up(record: ServiceRecord) -> bool:
    """Whether the service is up: the API once it serves requests, others once they report (engines start with a
    run)."""
    return record.kind != "api" or record.state in ("idle", "ready", "updating")


def status_rows(deployment: Deployment) -> list[dict[str, Any]]:
    """One row per process: instance, state, pid, run, weight version, what it is waiting for, restarts."""
    rows = []
    for running in deployment.supervisor.children:
        record = deployment.records.get(running.child.instance)
        if running.process is None:
            state = f"exited with code {running.exit_code}, restarting soon"
            if running.child.instance == VALKEY and (fault := queue_server_fault(deployment.plan.home)):
                state = fault
        elif running.child.command[1:2] != ["-m"]:
            state = "running"
        else:
            state = record.state if record is not None else "starting" if not running.seen else "not answering"
        rows.append(
            {
                "instance": running.child.instance,
                "state": state,
                "pid": running.process.pid if running.process is not None else None,
                "run": record.run_id if record is not None else None,
                "weights": record.weight_version if record is not None else None,
                "waiting_for": record.waiting_for if record is not None else "",
                "restarts": running.num_restarts,
            }
        )
    return rows


def status_table(deployment: Deployment) -> Table:
    """The live table of `turnout up`."""
    from rich.table import Table

    table = Table(title=f"Turnout at {deployment.plan.api_url}", caption="Ctrl-C stops it", title_justify="left")
    for name in ("service", "state", "pid", "run", "weights", "waits for", "restarts"):
        table.add_column(name)
    for row in status_rows(deployment):
        shown = [row["pid"], row["run"], row["weights"], row["waiting_for"], row["restarts"] or None]
        table.add_row(
            row["instance"], in_line(row["state"]), *("" if value is None else in_line(str(value)) for value in shown)
        )
    return table


def _error_in(log: Path) -> str:
    """The last error that a background supervisor printed."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("turnout: ")]
    return (errors or lines or ["The supervisor exited silently."])[-1].removeprefix("turnout: ")


def home_api_url(home: Path) -> str | None:
    """URL of the API that is running in a home, if there is one."""
    state: HomeState | None = read_state(home)
    return state.api_url if state is not None and alive(state) else None

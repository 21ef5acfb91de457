"""The main learner's side of a run on several machines: who is there, what each is to do, what went wrong elsewhere."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec
from fastapi import FastAPI, Request, Response

from services.contracts.errors import ConfigurationError, UnavailableError
from services.learner.connections.progress_pipe import LISTENER_VARIABLE
from services.learner.machines.network import variables_for
from services.learner.machines.protocol import (
    MAX_BYTES,
    PATH,
    SILENCE_SECONDS,
    Report,
    Task,
    difference,
    release,
    this_host,
)
from services.learner.processes import Share, cause_of
from services.runtime.address import authority, listen_on
from services.runtime.http.access import is_service, unauthorized
from services.runtime.http.problem import problem
from services.runtime.logs import get_logger
from services.runtime.presence import Presence
from services.runtime.settings import Settings

log = get_logger(__name__)
LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an attempt cannot continue."""

    code: int
    """Exit code of the rank that ended, or 1."""
    text: str
    is_silent: bool = False
    """The machine itself is gone, so that ranks here wait for it indefinitely."""


@dataclass(slots=True)
class Crew:
    """The other machines of this learner."""

    presence: Presence
    count: int
    """How many there are."""
    port: int
    """Where ranks meet; 0: any."""
    _seen: dict[str, tuple[Report, float]] = field(default_factory=dict)
    """By instance, with the monotonic time of its report."""
    _tasks: dict[str, Task] = field(default_factory=dict)
    """Of the attempt under way."""
    _started: dict[str, float] = field(default_factory=dict)
    """`Report.started_at` of those that have tasks, as the attempt began."""
    _listener: socket.socket | None = None

    def add_routes(self, app: FastAPI, settings: Settings) -> None:
        """Answer helpers."""

        @app.post(PATH)
        async def report(request: Request) -> Response:
            if not is_service(request, settings):
                return unauthorized()
            body = await request.body()
            try:
                found = msgspec.json.decode(body[:MAX_BYTES], type=Report)
            except msgspec.DecodeError as error:
                return problem(422, "Invalid report", f"{error}; is the learner there of another release?")
            return Response(msgspec.json.encode(self.answer(found)), media_type="application/json")

    def answer(self, report: Report) -> Task:
        """Take a report; what its machine is to do."""
        self._seen[report.instance] = (report, time.monotonic())
        task = self._tasks.get(report.instance)
        if task is not None and report.started_at == self._started[report.instance]:
            return task
        other = difference(report.release, release())
        return Task(refusal=f"It has {other}. Install the same release on all machines of a run." if other else "")

    async def gather(self, run_id: str, num_ranks: int, tell: Callable[[str], Awaitable[None]]) -> Share:
        """Wait until all machines are there and fit, and give each its ranks. Returns this machine's.

        Args:
            tell: is told why a machine that is there cannot take part, once for each reason.

        Raises:
            ConfigurationError: the ranks cannot be spread evenly.
            UnavailableError: the ranks have nowhere to meet.
        """
        here, rest = divmod(num_ranks, self.count + 1)
        if rest:
            raise ConfigurationError(
                f"training.num_ranks is {num_ranks}, which {self.count + 1} machines cannot share evenly "
                f"(TURNOUT_LEARNER_MACHINES of {self.presence.instance}).",
                remedy=f"Choose a multiple of {self.count + 1}.",
                field="training.num_ranks",
            )
        told: set[str] = set()
        while len(fit := self._fit(time.monotonic())) < self.count:
            misfits = self._misfits()
            self.presence.waits_for(
                f"{self.count - len(fit)} of {self.count} other learner machines"
                + (f" ({'; '.join(misfits)})" if misfits else "")
            )
            for text in misfits:
                if text not in told:
                    told.add(text)
                    await tell(f"A learner machine cannot take part: {text}.")
            await asyncio.sleep(LOOK_SECONDS)
        self.presence.waits_for("")
        return self._assign(run_id, here, sorted(fit)[: self.count])

    def _assign(self, run_id: str, here: int, chosen: list[str]) -> Share:
        self._listener = self._listen()
        address, port = self._listener.getsockname()[:2]
        attempt, world = uuid.uuid4().hex, here * (self.count + 1)
        self._started = {name: self._seen[name][0].started_at for name in chosen}
        self._tasks = {
            name: Task(attempt, run_id, here * number, here, world, address, port)
            for number, name in enumerate(chosen, start=1)
        }
        self.presence.details["machines"] = " ".join([self.presence.instance, *chosen])
        log.info("machines gathered", run_id=run_id, attempt=attempt, machines=self.presence.details["machines"])
        descriptor = self._listener.fileno()
        variables = variables_for(attempt, address, port, address) | {LISTENER_VARIABLE: str(descriptor)}
        return Share(here, 0, world, variables, (descriptor,))

    def _listen(self) -> socket.socket:
        host = urlsplit(self.presence.url).hostname or ""
        try:
            listener = listen_on(host, self.port)
            listener.listen(1024)
        except OSError as error:
            raise UnavailableError(
                f"Ranks cannot meet at {authority(host, self.port)}: {error.strerror or error}.",
                remedy="TURNOUT_ADVERTISE_URL must name an address of this machine, and TURNOUT_LEARNER_MEETING_PORT a "
                "port that nothing else uses.",
                field="TURNOUT_LEARNER_MEETING_PORT",
            ) from error
        return listener

    def started(self) -> None:
        """Rank 0 has the meeting point's socket."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def dismiss(self) -> None:
        """The attempt is over: all machines end their ranks."""
        self.started()
        self._tasks, self._started = {}, {}
        self.presence.details.pop("machines", None)

    async def fault(self) -> Fault:
        """Wait until something goes wrong on another machine."""
        while (found := self._fault(time.monotonic())) is None:
            await asyncio.sleep(LOOK_SECONDS)
        return found

    def _fault(self, now: float) -> Fault | None:
        for name, task in self._tasks.items():
            report, at = self._seen[name]
            place = f"{name} on {report.host}"
            if now - at > SILENCE_SECONDS:
                return Fault(1, f"{place} has given no sign of life for {SILENCE_SECONDS:.0f} s", is_silent=True)
            if report.started_at != self._started[name]:
                return Fault(1, f"{place} was restarted")
            if report.attempt == task.attempt and report.code:
                return Fault(report.code, f"{place}: {report.error or cause_of(report.code)}")
        return None

    def quiet(self, seconds: float) -> Fault | None:
        """The machine that has not reported for so long, if there is one: likely why ranks here lost a connection."""
        now = time.monotonic()
        for name in self._tasks:
            report, at = self._seen[name]
            if now - at > seconds:
                return Fault(1, f"{name} on {report.host} has given no sign of life for {now - at:.0f} s")
        return None

    def _present(self, now: float) -> list[Report]:
        self._seen = {name: (report, at) for name, (report, at) in self._seen.items() if now - at <= SILENCE_SECONDS}
        return [report for report, _ in self._seen.values()]

    def _fit(self, now: float) -> list[str]:
        """Machines that could begin at once. One that still ends older ranks will do so soon."""
        ours = release()
        return [report.instance for report in self._present(now) if report.release == ours and not report.attempt]

    def _misfits(self) -> list[str]:
        """Why machines that are there do not fit."""
        found = []
        for report, _ in self._seen.values():
            if other := difference(report.release, release()):
                found.append(f"{report.instance} on {report.host} has {other} on {this_host()}")
        return sorted(found)

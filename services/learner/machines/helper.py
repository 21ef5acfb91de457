"""A learner on another machine: it has ranks of the runs that its main learner serves, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field

import httpx
import msgspec

from services.contracts.heartbeat import HELPS
from services.learner.machines.network import variables_for
from services.learner.machines.protocol import (
    MAX_BYTES,
    PATH,
    REPORT_SECONDS,
    SILENCE_SECONDS,
    Report,
    Task,
    release,
    this_host,
)
from services.learner.processes import RankProcesses, Share, cause_of
from services.runtime.address import authority
from services.runtime.http.outgoing import request
from services.runtime.logs import get_logger, set_log_fields

log = get_logger(__name__)
ANSWER_SECONDS = 3.0
CONNECT_SECONDS = 3.0


@dataclass(slots=True)
class Helper(RankProcesses):
    """Runs the ranks that the main learner gives it."""

    main: str = ""
    """URL of the main learner."""
    token: str = ""
    _attempt: str = ""
    """Whose ranks run here, or have ended and are not dismissed yet."""
    _code: int | None = None
    _reason: str = ""
    _end: asyncio.Task[int] | None = None
    _reader: asyncio.Task[None] | None = None
    _heard_at: float = 0.0
    _started_at: float = field(default_factory=time.time)

    async def run(self) -> None:
        """Consumes tasks; produces ranks and reports; waits for the main learner. Until cancelled."""
        self.presence.details[HELPS] = self.main
        self.presence.state = "idle"
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                while True:
                    await self._turn(client)
                    await asyncio.sleep(REPORT_SECONDS)
            finally:
                await self._dismiss()

    async def _turn(self, client: httpx.AsyncClient) -> None:
        """One report, and what its answer asks for."""
        await self._look()
        try:
            task = await self._ask(client)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            await self._unheard(str(error) or type(error).__name__)
            return
        self._heard_at = time.monotonic()
        self._say(task.refusal, "a run" if not task.attempt else "")
        if task.attempt == self._attempt:
            return
        if self._attempt:
            await self._dismiss()
        elif task.attempt:
            await self._begin(task)

    async def _ask(self, client: httpx.AsyncClient) -> Task:
        report = Report(
            self.presence.instance, this_host(), self._started_at, release(), self._attempt, self._code, self._reason
        )
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        reply = await request(
            client,
            "POST",
            self.main.rstrip("/") + PATH,
            seconds=ANSWER_SECONDS,
            max_bytes=MAX_BYTES,
            headers=headers,
            content=msgspec.json.encode(report),
        )
        if not reply.is_success:
            raise httpx.RemoteProtocolError(_refusal(reply))
        return msgspec.json.decode(reply.content, type=Task)

    async def _unheard(self, reason: str) -> None:
        """No answer. Ranks that wait for others would do so indefinitely, while the run has long resumed elsewhere."""
        self._say(f"The main learner at {self.main} does not answer: {reason}", "the main learner")
        silent = time.monotonic() - self._heard_at
        if self._attempt and self._code is None and silent > SILENCE_SECONDS:
            log.error("ranks ended", attempt=self._attempt, reason=f"no answer for {silent:.0f} s")
            await self._stop()
            self._code, self._reason = 1, f"no answer from the main learner for {silent:.0f} s"

    def _say(self, fault: str, waiting_for: str) -> None:
        if fault and fault != self.presence.details.get("fault"):
            log.error("no ranks here", reason=fault)
        self.presence.details.pop("fault", None)
        if fault:
            self.presence.details["fault"] = fault
        if self._end is None:
            self.presence.state = "idle"
            self.presence.waits_for(waiting_for)

    async def _begin(self, task: Task) -> None:
        self._attempt, self._code, self._reason = task.attempt, None, ""
        set_log_fields(run_id=task.run_id)
        try:
            own = await asyncio.to_thread(_reach, task.address, task.port)
        except OSError as error:
            self._code = 1
            self._reason = (
                f"cannot reach the ranks' meeting point {authority(task.address, task.port)} ({error}). Check the "
                "main learner's TURNOUT_ADVERTISE_URL and firewalls"
            )
            return
        variables = variables_for(task.attempt, task.address, task.port, own)
        share = Share(task.num_ranks, task.first_rank, task.world_size, variables)
        self.presence.run_id, self.presence.state = task.run_id, "starting"
        self._reader = await self.start(task.run_id, share)
        self._end = asyncio.create_task(self._ended())

    async def _ended(self) -> int:
        """The first bad exit code, or 0 once all ranks have ended well."""
        for waited in asyncio.as_completed([asyncio.create_task(process.wait()) for process in self._processes]):
            if code := await waited:
                return code
        return 0

    async def _look(self) -> None:
        """See whether the ranks have ended. If one did badly, the others here are ended too."""
        if self._end is None or not self._end.done() or self._code is not None:
            return
        self._code = code = self._end.result()
        if code:
            assert self._reader is not None
            await asyncio.wait({self._reader}, timeout=1)  # its last words
            self._reason = ((self._error if code > 0 else "") or cause_of(code))[:4000]
            await self._end_processes()
        log.info("ranks ended", attempt=self._attempt, code=code, reason=self._reason)

    async def _dismiss(self) -> None:
        """End the attempt's ranks; the next report says that there are none."""
        await self._stop()
        self._attempt, self._code, self._reason = "", None, ""

    async def _stop(self) -> None:
        for task in (self._end, self._reader):
            if task is not None:
                task.cancel()
        self._end = self._reader = None
        await self._end_processes()
        self.presence.run_id, self.presence.state = None, "idle"


def _reach(address: str, port: int) -> str:
    """The address from which this machine reaches another. Raises `OSError`."""
    with socket.create_connection((address, port), CONNECT_SECONDS) as connection:
        return str(connection.getsockname()[0])


def _refusal(reply: httpx.Response) -> str:
    if reply.status_code == 401:
        return "TURNOUT_SERVICE_TOKEN differs from that learner's"
    if reply.status_code == 404:
        return "no learner with TURNOUT_LEARNER_MACHINES above 1 is there"
    return f"it answered {reply.status_code}: {reply.text[:300]}"

"""The learner service: follows its assignment, starts the training program, and restarts it after a crash."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError

from services.contracts import events, streams
from services.contracts.heartbeat import ServiceRecord
from services.learner import processes
from services.learner.connections.progress_pipe import EXIT_NO_QUEUE, EXIT_REPORTED, SERVICE_VARIABLE
from services.learner.processes import RankProcesses, Share
from services.learner.program.main import report_failure
from services.learner.retries import Attempts
from services.learner.service import Learner
from services.runtime.presence import Presence
from services.runtime.process import end
from tests.conftest import ROOT
from tests.faults import Away
from tests.services.learner.ring import EventLog, FakeRing, bytecode_cached, put_run, run_values


def test_attempts_are_bounded_and_reset_by_a_step() -> None:
    attempts = Attempts(limit=3, first_pause_seconds=1.0, longest_pause_seconds=3.0)
    assert [attempts.crashed() for _ in range(4)] == [1.0, 2.0, 3.0, None]
    attempts.progressed(1)
    assert attempts.crashed() == 1.0
    attempts.progressed(1)
    assert attempts.crashed() == 2.0


async def test_an_outage_of_the_queue_server_does_not_count_as_a_crash(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the program finds no queue server, the run does not fail: the failure could not be reported."""
    learner = Learner(Presence(redis, "learner", "learner-0", ""), redis=redis, attempts=Attempts(limit=1))
    codes = [EXIT_NO_QUEUE] * 5 + [0]

    async def attempt(_: Learner, run_id: str) -> int:
        if len(codes) == 1:
            await redis.delete(streams.assignment("learner-0"))
        return codes.pop(0)

    monkeypatch.setattr(Learner, "_attempt", attempt)
    await redis.set(streams.assignment("learner-0"), "run")
    await learner._serve("run")
    assert codes == []
    assert learner.attempts.failed == 0


async def test_an_outage_before_the_program_starts_does_not_end_the_run(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with a full disk may answer a ping and be gone before the run's configuration is read."""
    away = Away()
    learner = Learner(Presence(redis, "learner", "learner-0", ""), redis=redis)
    monkeypatch.setattr(learner, "redis", away)
    assert await learner._attempt("run") == EXIT_NO_QUEUE


async def test_a_failure_during_an_outage_is_reported_after_it(redis: Redis) -> None:
    """No other service would end the run: it would be shown as running indefinitely."""
    learner = Learner(Presence(redis, "learner", "learner-0", ""), redis=redis)
    await redis.set(streams.assignment("learner-0"), "run")
    learner.redis = away = Away()
    giving_up = asyncio.create_task(learner._give_up("run", "exit code 1"))
    try:
        await asyncio.wait_for(away.has_refused.wait(), 20)
        learner.redis = redis
        log = EventLog(redis)
        await log.wait_for(lambda seen: bool(seen), seconds=20)
        assert last_state(log.events) == "failed"
        await redis.delete(streams.assignment("learner-0"))
        await asyncio.wait_for(giving_up, 20)
    finally:
        await end([giving_up], seconds=10)


async def test_a_program_without_queue_server_tells_its_service(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the server is up but rejects writes because its memory or its disk is full."""
    link: Any = object()  # not called: it would wait for the queue server
    assert report_failure(link, RedisConnectionError("Connection refused")) == EXIT_NO_QUEUE
    full = ResponseError("MISCONF Errors writing to the AOF file: No space left on device")
    assert report_failure(link, full) == EXIT_NO_QUEUE
    presence, has_refused = Presence(redis, "learner", "learner-0", ""), asyncio.Event()
    publish = presence.publish

    async def watched() -> None:
        try:
            await publish()
        except OutOfMemoryError:
            has_refused.set()
            raise

    monkeypatch.setattr(presence, "publish", watched)
    learner = Learner(presence, redis=redis)
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError) as refused:
            await redis.set("a", "b")
        waiting = asyncio.create_task(learner._until_queue_answers())
        await asyncio.wait_for(has_refused.wait(), 20)
        assert not waiting.done()
    finally:
        await redis.config_set("maxmemory", 0)
    assert report_failure(link, refused.value) == EXIT_NO_QUEUE
    await asyncio.wait_for(waiting, 20)


class Ended:
    """A rank that exits with `code` after `turns` of the loop, or hangs if None."""

    def __init__(self, code: int | None, turns: int = 0) -> None:
        self.code, self.turns = code, turns

    async def wait(self) -> int:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if self.code is None:
            await asyncio.Event().wait()
        assert self.code is not None
        return self.code


@pytest.mark.parametrize(
    ("ranks", "code", "error"),
    [
        (
            [Ended(EXIT_REPORTED, 9), Ended(1)],
            EXIT_REPORTED,
            "seen",
        ),  # all ranks met it; rank 0 reports it and exits later
        ([Ended(1, 9), Ended(-9)], -9, ""),  # rank 0 only saw that the other was gone
        ([Ended(1, 9), Ended(0), Ended(2)], 2, "seen"),
        ([Ended(None), Ended(1)], 1, "seen"),
        ([Ended(None), Ended(0)], 1, "seen"),
        ([Ended(0, 9), Ended(0)], 0, "seen"),
        ([Ended(-11), Ended(1, 9)], -11, "seen"),
    ],
)
async def test_the_exit_code_is_that_of_the_rank_that_failed_first(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, ranks: list[Any], code: int, error: str
) -> None:
    monkeypatch.setattr("services.learner.processes.STOP_SECONDS", 0.2)
    learner = Learner(Presence(redis, "learner", "learner-0", ""), redis=redis)
    learner._processes, learner._error = ranks, "seen"
    assert await learner._first_end() == code
    assert learner._error == error


def test_a_rank_ends_with_its_service() -> None:
    """Whatever the rank is waiting for."""
    rank = (
        "import time; from services.learner.connections.progress_pipe import end_with_service; "
        "end_with_service(); time.sleep(600)"
    )
    start = (
        f"import os, subprocess, sys; variables = os.environ | {{{SERVICE_VARIABLE!r}: str(os.getpid())}}; "
        f"subprocess.Popen([sys.executable, '-c', {rank!r}], env=variables)"
    )
    learner = subprocess.Popen([sys.executable, "-c", start], cwd=ROOT, stdout=subprocess.PIPE)
    # The pipe closes when the last process that has it, the rank, exits.
    assert learner.communicate(timeout=60) == (b"", None)


async def test_the_service_waits_for_a_program_that_is_writing_however_often_it_is_cancelled(redis: Redis) -> None:
    learner = Learner(Presence(redis, "learner", "learner-0", ""), redis=redis)
    writes = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(sys.stdin.readline() != 'x')); "
    pipe = asyncio.subprocess.PIPE
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", writes + "print(flush=True)\nwhile True: signal.pause()", stdin=pipe, stdout=pipe
    )
    assert program.stdin is not None
    assert program.stdout is not None
    await program.stdout.readline()
    learner._processes = [program]
    ending = asyncio.create_task(learner._end_processes())
    for _ in range(5):
        await asyncio.sleep(0)
        ending.cancel()
    program.stdin.write(b"x")
    program.stdin.close()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert program.returncode == 0


async def test_a_start_leaves_no_descriptor_however_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service restarts its program for as long as it lives."""
    ranks = RankProcesses(Presence(Redis(), "learner", "learner-0", ""))
    monkeypatch.setattr(processes, "PROGRAM", "json.tool")
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/no/such/python")
        with pytest.raises(FileNotFoundError):
            await ranks.start("run", Share(1))
    assert os.listdir("/proc/self/fd") == before
    reader = await ranks.start("run", Share(1))
    reader.cancel()
    await asyncio.wait([reader])
    await ranks._end_processes()
    assert os.listdir("/proc/self/fd") == before


async def test_a_program_that_cannot_be_started_counts_as_a_crash(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine may be out of memory or processes for a moment; the service must outlive that."""
    learner = Learner(Presence(redis, "learner", "learner-0", ""), redis=redis, attempts=Attempts(limit=0))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    await put_run(redis, "run", run_values())
    await redis.set(streams.assignment("learner-0"), "run")
    serving, log = asyncio.create_task(learner._serve("run")), EventLog(redis)
    try:
        await log.wait_for(lambda seen: bool(seen), seconds=20)
        assert last_state(log.events) == "failed"
        assert "could not be started" in log.events[-1].reason
        assert not serving.done()
    finally:
        await end([serving], seconds=10)


async def test_a_killed_program_restarts_and_the_run_succeeds(valkey_url: str, redis: Redis, tmp_path: Path) -> None:
    variables = {
        "TURNOUT_REDIS_URL": valkey_url,
        "TURNOUT_HOME": str(tmp_path),
        "TURNOUT_LOG_FORMAT": "text",
        "PYTHONWARNINGS": "ignore",
    }
    await redis.set(streams.attempt("run"), "1")
    await put_run(redis, "run", run_values(training={"steps": 200}, checkpoint={"every_steps": 5}))
    ring = asyncio.create_task(FakeRing(redis, "run").run())
    log = EventLog(redis)
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.learner", cwd=ROOT, env=bytecode_cached(os.environ) | variables
    )
    try:
        assert (await record(redis, "idle")).waiting_for == "a run"
        await redis.set(streams.assignment("learner-0"), "run")
        await log.wait_for(lambda seen: any(isinstance(event, events.CheckpointWritten) for event in seen))
        working = await record(redis, "ready")
        assert working.run_id == "run"
        listening = psutil.Process(int(working.details["pids"])).net_connections("tcp")
        assert {end.laddr.ip for end in listening if end.status == psutil.CONN_LISTEN} <= {"127.0.0.1"}, "no stranger's"
        os.kill(int(working.details["pids"]), signal.SIGKILL)
        await log.wait_for(lambda seen: any(isinstance(e, events.Note) and "SIGKILL" in e.text for e in seen))
        await log.wait_for(lambda seen: any(isinstance(e, events.Note) and "Resumed" in e.text for e in seen))
        await redis.set(streams.desired("run"), "stopped")
        await log.wait_for(lambda seen: last_state(seen) == "stopped")
        # Resumed before the program has fully exited: the assignment never changes.
        await redis.set(streams.desired("run"), "running")
        await redis.set(streams.attempt("run"), "2")
        await log.wait_for(lambda seen: last_state(seen) == "running")
        await redis.set(streams.desired("run"), "stopped")
        await log.wait_for(lambda seen: last_state(seen) == "stopped")
        await redis.delete(streams.assignment("learner-0"))
        assert (await record(redis, "idle")).run_id is None
        service.terminate()
        assert await service.wait() == 0
        assert open_to_others(tmp_path) == []
    finally:
        if service.returncode is None:
            service.kill()
        while not ring.done():
            ring.cancel()
            await asyncio.wait([ring], timeout=0.5)


def open_to_others(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.stat().st_mode & 0o077]


def last_state(seen: list[Any]) -> str:
    return [event.state for event in seen if isinstance(event, events.RunStateChanged)][-1]


async def record(redis: Redis, state: str) -> ServiceRecord:
    """The service's heartbeat, once it shows `state`."""
    async with asyncio.timeout(120):
        while True:
            value = await redis.get(streams.service("learner-0"))
            if value is not None:
                found = msgspec.json.decode(value, type=ServiceRecord)
                if found.state == state:
                    return found
            await asyncio.sleep(0.05)

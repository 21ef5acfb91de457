"""The learner service: follows its assignment, starts the training program, and starts it again after a crash."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

from services.contracts import events, streams
from services.contracts.services import ServiceRecord
from services.learner.supervisor import Attempts
from tests.learner.ring import ROOT, EventLog, FakeRing, bytecode_cached, put_run, run_values


def test_attempts_are_bounded_and_a_step_forgives() -> None:
    attempts = Attempts(limit=3, first_pause_seconds=1.0, longest_pause_seconds=3.0)
    assert [attempts.crashed() for _ in range(4)] == [1.0, 2.0, 3.0, None]
    attempts.progressed(1)
    assert attempts.crashed() == 1.0
    attempts.progressed(1)
    assert attempts.crashed() == 2.0


async def test_a_killed_program_comes_back_and_the_run_succeeds(valkey_url: str, redis: Redis, tmp_path: Path) -> None:
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
        os.kill(int(working.details["pids"]), signal.SIGKILL)
        await log.wait_for(lambda seen: any(isinstance(e, events.Note) and "SIGKILL" in e.text for e in seen))
        await log.wait_for(lambda seen: any(isinstance(e, events.Note) and "Resumed" in e.text for e in seen))
        await redis.set(streams.desired("run"), "stopped")
        await log.wait_for(lambda seen: last_state(seen) == "stopped")
        # Resumed before the program has quite ended: the assignment never changes.
        await redis.set(streams.desired("run"), "running")
        await redis.set(streams.attempt("run"), "2")
        await log.wait_for(lambda seen: last_state(seen) == "running")
        await redis.set(streams.desired("run"), "stopped")
        await log.wait_for(lambda seen: last_state(seen) == "stopped")
        await redis.delete(streams.assignment("learner-0"))
        assert (await record(redis, "idle")).run_id is None
        service.terminate()
        assert await service.wait() == 0
    finally:
        if service.returncode is None:
            service.kill()
        while not ring.done():
            ring.cancel()
            await asyncio.wait([ring], timeout=0.5)


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

"""An engine that hangs is distinguished from one that is slow."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from services.rollout.vllm import pulse
from services.rollout.vllm.pulse import LOOK_SECONDS, Pulse, Signs
from services.rollout.vllm.server import EngineServer
from services.runtime.process import end

STILL = Signs(num_tokens=7, cpu_seconds=3.0)


def felt(*looks: Signs | None, seconds: float = LOOK_SECONDS) -> float:
    """Seconds without a sign of life after checks at these intervals."""
    found, still = Pulse(), 0.0
    for number, look in enumerate(looks):
        still = found.feel(number * seconds, look)
    return still


@pytest.mark.parametrize(
    "sign",
    [
        Signs(num_tokens=8, cpu_seconds=3.0),
        Signs(num_tokens=0, cpu_seconds=3.0),
        Signs(num_tokens=7, cpu_seconds=3.06),
        Signs(num_tokens=7, cpu_seconds=3.0, is_at_work=True),
        None,
    ],
)
def test_any_sign_of_life_resets_the_time(sign: Signs | None) -> None:
    assert felt(STILL, STILL, STILL, STILL) == 3 * LOOK_SECONDS
    assert felt(STILL, STILL, STILL, sign) == 0.0


def test_workers_that_only_poll_do_not_hide_a_hang() -> None:
    """While the core of an engine was stopped, its two workers used 0.018 to 0.028 of a processor."""

    def look(number: int, share: float) -> Signs:
        return Signs(num_tokens=7, cpu_seconds=number * share * LOOK_SECONDS, num_workers=3)

    assert felt(*(look(number, 0.03) for number in range(4))) == 3 * LOOK_SECONDS
    assert felt(*(look(number, 0.2) for number in range(4))) == 0.0


def test_time_in_which_this_service_did_not_run_does_not_count() -> None:
    """For example on a laptop that slept for a day, or in a container that was paused together with the engine."""
    assert felt(STILL, STILL, seconds=86_400.0) <= 2 * LOOK_SECONDS


@contextmanager
def process(program: str) -> Iterator[Any]:
    """A process that plays an engine."""
    with subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{program}"], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        try:
            yield started
        finally:
            started.kill()


def server_of(started: Any) -> EngineServer:
    server = EngineServer()
    resources = SimpleNamespace(engine_manager=SimpleNamespace(processes=[started]))
    engine: Any = SimpleNamespace(
        errored=False,
        engine_core=SimpleNamespace(resources=resources),
        output_processor=SimpleNamespace(request_states={}),
    )
    server.engine = engine
    return server


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_a_deadlocked_and_a_stopped_process_are_replaced(
    monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    monkeypatch.setattr(pulse, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(pulse, "STILL_SECONDS", 0.3)
    replaced = asyncio.get_running_loop().create_future()

    async def replace(seconds: float) -> None:
        replaced.set_result(seconds)

    with process("while True: pass" if is_stopped else "import threading; threading.Event().wait()") as started:
        if is_stopped:
            started.send_signal(signal.SIGSTOP)
        server = server_of(started)
        tasks = [
            asyncio.create_task(server.while_attached(asyncio.Event().wait())),
            asyncio.create_task(pulse.watch(server, replace)),
        ]
        async with asyncio.timeout(20):
            assert await replaced >= 0.3
        await end(tasks, seconds=10)


async def test_an_engine_that_computes_or_has_nothing_to_do_is_left_alone() -> None:
    with process("while True: pass") as started:
        server = server_of(started)
        assert pulse.signs_of(server) is None
        call = asyncio.create_task(server.while_attached(asyncio.Event().wait()))
        await asyncio.sleep(0)
        first = pulse.signs_of(server)
        assert first is not None
        while (signs := pulse.signs_of(server)) is not None and signs.cpu_seconds == first.cpu_seconds:
            assert signs.is_at_work
        assert signs is not None
        await end([call], seconds=10)


async def test_an_engine_is_not_waited_for_while_the_service_verifies_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow disk that takes longer than the limit for a hang, and the engine has nothing to do meanwhile."""
    begun, may_end = threading.Event(), threading.Event()

    def examined(*_: object) -> None:
        begun.set()
        may_end.wait()

    monkeypatch.setattr("services.rollout.vllm.server.examined", examined)
    server = server_of(None)
    verifying = asyncio.create_task(server.prepare({}, 1))
    await asyncio.to_thread(begun.wait)
    assert server.is_busy
    assert not server.is_waited_for
    may_end.set()
    await verifying

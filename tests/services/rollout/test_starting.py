"""An engine that hangs while starting is killed and started again. A stand-in plays vLLM, which seldom hangs."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.contracts.errors import ConfigurationError
from services.rollout.environment import REFUSED, REFUSED_ELSEWHERE
from services.rollout.vllm import engine, pulse, starting
from services.rollout.vllm.engine import EngineSpec, EngineStartError
from services.rollout.vllm.server import EngineServer, check_answers
from services.rollout.weights.examine import WeightUpdateError
from services.runtime.process import end
from tests.services.rollout.test_ended_engine import Engine

SPEC = EngineSpec("m", "float32", 64, 4, 0, False)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(pulse, "STILL_SECONDS", 0.4)


def waits() -> None:
    threading.Event().wait()


def stops() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def computes() -> None:
    ends = time.process_time() + 0.8
    while time.process_time() < ends:
        pass


def writes() -> None:
    ends = time.monotonic() + 0.8
    with open(os.devnull, "wb") as file:
        while time.monotonic() < ends:
            file.write(bytes(1 << 20))
            file.flush()
            time.sleep(0.02)


def building_with(process: Callable[[], None]) -> Callable[[EngineSpec], Any]:
    """Like vLLM, start a process and wait until it is ready or has exited."""

    def build(_: EngineSpec) -> Any:
        started = multiprocessing.get_context("fork").Process(target=lambda: (process(), os._exit(0)))
        started.start()
        wait([started.sentinel])
        started.join()
        if started.exitcode:
            raise EngineStartError(f"Engine core initialization failed: {started.exitcode}.")
        return "engine"

    return build


@pytest.mark.parametrize("process", [waits, stops])
async def test_a_start_whose_process_hangs_is_aborted(
    monkeypatch: pytest.MonkeyPatch, process: Callable[[], None]
) -> None:
    monkeypatch.setattr("services.rollout.vllm.engine.build", building_with(process))
    async with asyncio.timeout(20):
        with pytest.raises(EngineStartError, match=r"start hung for \d+ s, so its processes were killed.*tries again"):
            await starting.start(SPEC)
    assert multiprocessing.active_children() == []
    monkeypatch.setattr("services.rollout.vllm.engine.build", building_with(computes))
    assert await starting.start(SPEC) == "engine", "the next one starts"


@pytest.mark.parametrize("process", [computes, writes])
async def test_a_start_that_takes_long_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, process: Callable[[], None]
) -> None:
    monkeypatch.setattr("services.rollout.vllm.engine.build", building_with(process))
    started = time.monotonic()
    assert await starting.start(SPEC) == "engine"
    assert time.monotonic() - started > pulse.STILL_SECONDS


async def test_vllms_reason_for_a_failed_start_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.rollout.vllm.engine.build", building_with(lambda: os._exit(3)))
    with pytest.raises(EngineStartError, match="initialization failed"):
        await starting.start(SPEC)


async def test_a_start_that_hangs_in_the_service_itself_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(starting, "END_SECONDS", 0.1)
    monkeypatch.setattr("services.rollout.vllm.engine.build", lambda _: release.wait())
    async with asyncio.timeout(20):
        with pytest.raises(starting.StuckStartError, match="hung in this process"):
            await starting.start(SPEC)
    release.set()


@pytest.mark.parametrize("hangs", ["pause_scheduler_async", "update_weight_version"])
async def test_an_engine_that_hangs_before_it_serves_counts_as_waited_for_and_can_be_stopped(hangs: str) -> None:
    server = EngineServer()
    engine: Any = Engine(hangs)
    attaching = asyncio.create_task(server.attach(engine, "run"))
    async with asyncio.timeout(20):
        await engine.reached.wait()
        assert server.is_waited_for, "otherwise the watch would not see it"
        assert server.detach() is engine
        with pytest.raises(Exception, match="stopped during the call"):
            await attaching
    assert SimpleNamespace(phase=server.phase, engine=server.engine) == SimpleNamespace(phase="absent", engine=None)
    await end([attaching], seconds=5)


def test_a_deployment_that_is_offline_stays_so_for_hub_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine, "ASKED_OFFLINE", False)
    assert engine.needs_no_hub(str(tmp_path))
    assert not engine.needs_no_hub("owner/name")
    monkeypatch.setattr(engine, "ASKED_OFFLINE", True)
    assert engine.needs_no_hub("owner/name")


def test_a_group_larger_than_the_servers_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "on_cpu", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4")
    engine.check_devices(replace(SPEC, tensor_parallel_size=3))
    with pytest.raises(ConfigurationError, match=r"size is 4, but .* sees 3 GPUs \(CUDA_VISIBLE_DEVICES is 0,1,4\)"):
        engine.check_devices(replace(SPEC, tensor_parallel_size=4))


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        (["", ""], None),
        ([REFUSED_ELSEWHERE, f"{REFUSED}: damaged."], f"{REFUSED}: damaged."),
        (["", f"{REFUSED}: damaged."], "only some workers of the engine have loaded the weights."),
        ([f"{REFUSED}: damaged.", "out of memory"], "out of memory"),
        (["out of memory", ""], "out of memory"),
    ],
)
def test_an_update_is_refused_only_if_all_workers_refuse_it(answers: list[str], error: str | None) -> None:
    """Otherwise the model is half-written, whatever the first worker says."""
    if error is None:
        check_answers(answers)
        return
    with pytest.raises(WeightUpdateError) as raised:
        check_answers(answers)
    assert str(raised.value) == error

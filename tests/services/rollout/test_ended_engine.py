"""An engine that is stopped while its weights are updated. A stand-in plays it, since vLLM hangs only rarely."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from services.contracts.errors import ConflictError, UnavailableError
from services.rollout.http import GuardedClient
from services.rollout.vllm.server import EngineServer, Phase


class Engine:
    """Answers every call except one."""

    errored = False

    def __init__(self, hangs: str) -> None:
        self.hangs = hangs
        self.reached = asyncio.Event()
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(model="", dtype="torch.float32", trust_remote_code=False)
        )
        self.output_processor = SimpleNamespace(request_states={})
        self.engine_core = self

    def __getattr__(self, name: str) -> Any:
        async def call(*_: object, **__: object) -> bool:
            if name == self.hangs:
                self.reached.set()
                await asyncio.get_running_loop().create_future()
            return True

        return call


@pytest.mark.parametrize(("hangs", "phase"), [("pause_scheduler_async", "paused"), ("start_weight_update", "paused")])
async def test_its_update_ends_and_the_next_engine_has_no_fault(hangs: str, phase: Phase) -> None:
    """A run that is resumed immediately stops the engine of the last push. If that push kept waiting, the server would
    never accept another."""
    server = EngineServer()
    first: Any = Engine("nothing")
    await server.attach(first, "run")
    await server.resume_generation()
    first.hangs = hangs

    async def prepared(*_: object) -> None:
        """Verifies nothing."""

    server.prepare = prepared  # type: ignore[method-assign, assignment]
    update = asyncio.create_task(server.load(1, "folder", "checksum"))
    async with asyncio.timeout(20):
        await first.reached.wait()
        assert server.phase == phase
        server.detach()
        with pytest.raises(UnavailableError, match="stopped during the call"):
            await update
    assert (server.phase, server.is_loading) == ("absent", False)
    second: Any = Engine("nothing")
    await server.attach(second, "run")
    await server.resume_generation()
    assert (server.phase, server.must_rebuild, server.fault) == ("serving", False, "")


@pytest.mark.parametrize(
    ("phase", "hangs"),
    [
        ("pause_generation", "pause_scheduler_async"),
        ("start_weight_update", "start_weight_update"),
        ("resume_generation", "resume_generation"),
    ],
)
async def test_a_caller_of_single_phases_gets_the_error_too(phase: str, hangs: str) -> None:
    """Through vLLM's own routes, which do not go through `load`."""
    server = EngineServer()
    engine: Any = Engine(hangs="nothing")
    await server.attach(engine, "run")
    engine.hangs = hangs
    client = GuardedClient(server, busy=lambda: False)
    options = {"mode": "keep", "clear_cache": False} if phase == "pause_generation" else {}
    call = asyncio.create_task(getattr(client, phase)(**options))
    async with asyncio.timeout(20):
        await engine.reached.wait()
        with pytest.raises(ConflictError):
            await client.resume_generation()
        server.detach()
        with pytest.raises(UnavailableError, match="stopped during the call"):
            await call
    assert not server.is_busy

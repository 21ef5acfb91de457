"""A rollout server takes on a run completely or not at all."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from services.contracts import streams
from services.contracts.errors import ConfigurationError
from services.contracts.run_config import parse_run_config
from services.rollout.service import RolloutServer
from services.rollout.vllm.engine import EngineStartError, spec_for
from services.rollout.weights.examine import WeightUpdateError, examined
from services.rollout.weights.shapes import ModelForm
from services.runtime.presence import Presence
from services.runtime.process import Service, end
from services.runtime.settings import Settings
from tests.services.learner.ring import put_run, run_values


def serving(redis: Redis, home: Path) -> RolloutServer:
    """A server whose engine still serves another run, with the model's own weights. The engine is not called."""
    settings = Settings(home=home, instance="rollout-0")
    rollout = RolloutServer(Service(settings, redis, Presence(redis, "rollout", "rollout-0", ""), FastAPI()))
    engine: Any = SimpleNamespace(errored=False)
    rollout.server.engine, rollout.server.run_id = engine, "before"
    rollout.server._move("serving")
    rollout._spec = spec_for(parse_run_config(run_values()), settings, "rollout-0")
    return rollout


async def test_a_run_that_cannot_be_joined_is_not_served_with_the_last_runs_engine(
    redis: Redis, tmp_path: Path
) -> None:
    """Its configuration is rejected, or unreadable during an outage, while the engine of the previous run is still
    there, which would sample its prompts with another model."""
    rollout = serving(redis, tmp_path)
    refused = run_values()
    refused["model"]["trust_remote_code"] = True
    await put_run(redis, "run", refused)
    await redis.set(streams.assignment("rollout-0"), "run")
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="trust_remote_code"):
            await rollout._tick()
        rollout._retry_at = 0.0
    assert rollout._worker is None


async def test_an_unknown_configuration_is_reported(redis: Redis, tmp_path: Path) -> None:
    """Like any fault of a run. If it ended the service, the service would restart in a loop."""
    rollout = serving(redis, tmp_path)
    await put_run(redis, "run", run_values(rollout={"of_tomorrow": 1}))
    await redis.set(streams.assignment("rollout-0"), "run")
    with pytest.raises(ConfigurationError, match="of_tomorrow"):
        await rollout._tick()


async def test_an_update_by_single_phases_may_take_long(redis: Redis, tmp_path: Path) -> None:
    """An update is abandoned only if its caller leaves it open between two phases."""
    rollout = serving(redis, tmp_path)
    server, rollout._run_id = rollout.server, "run"
    server._move("open")
    server.changed_at -= 3600
    step = asyncio.create_task(server.while_attached(asyncio.Event().wait()))
    await asyncio.sleep(0)
    await rollout._catch_up()
    assert server.phase == "open"
    await end([step], seconds=10)
    await rollout._catch_up()
    assert (server.phase, server.must_rebuild) == ("failed", True)


@pytest.mark.parametrize("quantized", [False, True])
async def test_a_server_waits_for_version_0_if_it_is_not_the_model_at_path(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: bool
) -> None:
    rollout = serving(redis, tmp_path)
    values = run_values()
    values["model"] |= {"lora": {"load_in_4bit": quantized}}
    rollout._run_id, rollout._run, server = "run", parse_run_config(values), rollout.server
    server._move("paused")
    server.version, server.checksum = 0, None
    calls: list[Any] = []

    async def resume() -> None:
        calls.append("sampled with its own weights")

    async def load(*published: Any) -> None:
        calls.append(published[:3])

    monkeypatch.setattr(server, "resume_generation", resume)
    monkeypatch.setattr(server, "load", load)
    await rollout._bring_up()
    server.changed_at -= 3600
    await rollout._catch_up()
    assert (calls == []) is quantized
    if quantized:
        await redis.hset(
            streams.weights("run"), mapping={"version": "0", "path": "/w", "checksum": "c", "transfer": ""}
        )
        await rollout._catch_up()
        assert calls == [(0, "/w", "c")]


async def test_a_new_engine_waits_until_the_one_that_hung_is_gone(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise both would need the memory at the same time."""
    rollout, order, may_end = serving(redis, tmp_path), [], threading.Event()
    rollout._run_id = "run"

    def end_engine(_: object) -> None:
        may_end.wait()
        order.append("ended")

    def build(_: object) -> None:
        order.append("built")
        raise EngineStartError("It is only requested.")

    monkeypatch.setattr("services.rollout.service.engines.end", end_engine)
    monkeypatch.setattr("services.rollout.service.engines.build", build)
    replacing = asyncio.create_task(rollout._replace_hung(300.0))
    await asyncio.sleep(0)
    assert rollout.server.engine is None
    starting = asyncio.create_task(rollout._start_engine())
    await asyncio.wait({starting}, timeout=0.1)
    may_end.set()
    await replacing
    with pytest.raises(EngineStartError):
        await starting
    assert order == ["ended", "built"]


@pytest.mark.parametrize("is_loading", [False, True])
async def test_an_engine_in_the_middle_of_a_push_is_not_reused(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_loading: bool
) -> None:
    """The push would continue, and the next run would be sampled with the weights of the previous one."""
    rollout = serving(redis, tmp_path)
    engine, reused, ended = rollout.server.engine, [], []

    async def reuse(run_id: str) -> bool:
        reused.append(run_id)
        return True

    monkeypatch.setattr(rollout, "_reuse", reuse)
    monkeypatch.setattr("services.rollout.service.engines.end", ended.append)
    rollout.server.is_loading = is_loading
    await put_run(redis, "run", run_values())
    await rollout._join("run")
    assert (reused, ended) == (([], [engine]) if is_loading else (["run"], []))


async def test_a_model_outside_the_operators_folders_is_not_read(redis: Redis, tmp_path: Path) -> None:
    """The API's check is not enough: anyone who can write to the queue server can write a configuration."""
    rollout = serving(redis, tmp_path)
    rollout._service.settings.roots = str(tmp_path)
    await put_run(redis, "run", run_values())
    await redis.set(streams.assignment("rollout-0"), "run")
    with pytest.raises(ConfigurationError, match=r"model.path is .* outside the folders that runs may use"):
        await rollout._tick()


async def test_weights_outside_the_home_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "link").symlink_to(tmp_path / "elsewhere")
    form = ModelForm("", "float32")
    for path in (tmp_path / "elsewhere", tmp_path / "home" / "link", f"{tmp_path}/home/../elsewhere", "\0"):
        with pytest.raises(WeightUpdateError, match=r"outside the folders of published weights|null byte"):
            examined({"path": str(path), "checksum": "blake3:00"}, "run", form, [tmp_path / "home"])
    with pytest.raises(WeightUpdateError, match="no readable manifest"):
        examined({"path": str(tmp_path / "home"), "checksum": "blake3:00"}, "run", form, [tmp_path / "home"])


async def test_a_tokenizer_that_cannot_be_loaded_is_a_fault_and_retried(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at every tick, twice a second, and without ending the service."""
    rollout, tries = serving(redis, tmp_path), []

    async def reuse(run_id: str) -> bool:
        return True

    def load(path: str, *, trust_remote_code: bool) -> None:
        tries.append(path)
        raise ConfigurationError(f"The tokenizer of {path} cannot be loaded.")

    monkeypatch.setattr(rollout, "_reuse", reuse)
    monkeypatch.setattr("services.rollout.service.load_tokenizer", load)
    await put_run(redis, "run", run_values())
    await redis.set(streams.assignment("rollout-0"), "run")
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        await rollout._tick()
    await rollout._tick()
    assert len(tries) == 1
    rollout._retry_at = 0.0
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        await rollout._tick()

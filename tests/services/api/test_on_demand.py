"""Checkpoints and base models that are loaded onto an idle rollout server because someone asks for them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI, Request, Response
from redis.asyncio import Redis

from services.api.container import Parts
from services.api.control import on_demand
from services.api.storage.runs import Run
from services.contracts import streams
from services.contracts.heartbeat import ServiceState
from services.contracts.serving import on_demand_model
from tests.services.api.fakes import FakeInstance, eventually, served
from tests.services.api.test_forks import write_checkpoint
from tests.services.api.test_scheduler import create

QUESTION = [{"role": "user", "content": "hello"}]


class Talker(FakeInstance):
    """A rollout server that answers with the headers that say which model a request is for."""

    def __init__(self, redis: Redis, instance: str) -> None:
        super().__init__(redis, "rollout", instance)
        self.num_asked = 0
        self.status = 200
        self.gate = asyncio.Event()
        self.gate.set()
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self._answer)

    async def _answer(self, request: Request, response: Response) -> dict[str, Any]:
        self.num_asked += 1
        await self.gate.wait()
        response.status_code = self.status
        return {"by": self.instance, "asked": on_demand_model(request.headers)}

    async def become(self, state: ServiceState, run_id: str | None, version: int | None = 0) -> None:
        self.state, self.run_id, self.weight_version = state, run_id, version
        await self.publish()


@contextlib.asynccontextmanager
async def talker(redis: Redis, instance: str) -> AsyncIterator[Talker]:
    fake = Talker(redis, instance)
    async with served(fake.app) as url:
        fake.url = url
        await fake.publish()
        yield fake


@pytest.fixture
async def server(redis: Redis) -> AsyncIterator[Talker]:
    async with talker(redis, "rollout-0") as made:
        yield made


def ask(client: httpx.AsyncClient, model: str) -> asyncio.Task[httpx.Response]:
    body = {"model": model, "messages": QUESTION}
    return asyncio.create_task(client.post("/v1/chat/completions", json=body))  # type: ignore[arg-type]


async def taken(parts: Parts, server: Talker) -> str:
    """The model that the server is to load, after the scheduler's round."""

    async def assigned() -> str | None:
        await parts.scheduler.step()
        found = await server.assignment()
        return found if found != server.run_id else None

    found: str = await eventually(assigned)
    return found


async def load(parts: Parts, server: Talker) -> str:
    """Do what the server does about its assignment."""
    model_id = await taken(parts, server)
    await server.become("ready", model_id)
    await parts.scheduler.step()
    return model_id


async def listed(client: httpx.AsyncClient) -> list[tuple[str, str]]:
    return [(model["id"], model["state"]) for model in (await client.get("/v1/models")).json()["data"]]


@pytest.fixture
async def ended(client: httpx.AsyncClient, parts: Parts, run_body: dict[str, Any]) -> str:
    """A run that was cancelled, with checkpoints of steps 2 and 3."""
    run_id = await create(client, run_body)
    assert (await client.post(f"/v1/runs/{run_id}/stop")).is_success
    for step in (2, 3):
        write_checkpoint(parts.settings.run_folder(run_id), step)
    return run_id


async def test_a_request_waits_while_an_idle_server_loads_the_model(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, server: Talker, run_body: dict[str, Any]
) -> None:
    path = run_body["model"]["path"]
    first, second = ask(client, path), ask(client, path)
    model_id = await taken(parts, server)
    config = msgspec.json.decode(await redis.get(streams.config(model_id)) or b"")
    assert (config["model"]["path"], config["rollout"]["num_servers"]) == (path, 1)
    assert await listed(client) == [(path, "loading")]
    assert not first.done()
    await server.become("ready", model_id)
    await parts.scheduler.step()
    for reply in (await first, await second, await ask(client, path)):
        assert reply.json() == {"by": "rollout-0", "asked": [model_id, path]}
    assert await listed(client) == [(path, "loaded")]
    one = await client.get(f"/v1/models/{path}")
    assert (one.json()["root"], one.json()["state"]) == (path, "loaded")


async def test_any_checkpoint_of_a_run_and_the_newest_of_one_that_has_ended(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, server: Talker, ended: str
) -> None:
    request = ask(client, ended)
    model_id = await load(parts, server)
    assert (await request).json()["asked"] == [model_id, f"{ended}@3"]
    folder = parts.settings.run_folder(model_id)
    config = msgspec.json.decode(await redis.get(streams.config(model_id)) or b"")
    assert Path(config["model"]["path"]).is_relative_to(folder.resolve()), "a copy, which the run cannot delete"
    [model] = (await client.get("/v1/models")).json()["data"]
    assert (model["id"], model["weight_version"]) == (f"{ended}@3", 3)
    assert (await client.get(f"/v1/models/{ended}@2")).json()["state"] == "unloaded"
    shutil.rmtree(parts.settings.run_folder(ended))
    async with parts.database.write() as session:
        (await session.get_one(Run, ended)).step = 3
    gone = await ask(client, ended)
    assert f"Ask for {ended}@0, the model that it started from" in gone.json()["error"]["message"]
    missing = await ask(client, f"{ended}@7")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert f"Choose one of 0, or ask for {ended} for the newest" in missing.json()["error"]["message"]


async def test_a_run_takes_the_server_back_and_clients_are_told(
    parts: Parts, client: httpx.AsyncClient, server: Talker, learner: FakeInstance, ended: str, run_body: dict[str, Any]
) -> None:
    request = ask(client, f"{ended}@2")
    model_id = await load(parts, server)
    assert (await request).status_code == 200
    run_id = await create(client, run_body)
    assert await taken(parts, server) == run_id
    assert await listed(client) == []
    assert not parts.settings.run_folder(model_id).exists()
    refused = ask(client, f"{ended}@2")
    await eventually(lambda: parts.on_demand.models)
    await parts.scheduler.step()
    reply = await refused
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "30")
    text = reply.json()["error"]["message"]
    assert f"No rollout server is idle; run {run_id} uses the only one. Send it again later" in text
    pinned = await ask(client, run_id)
    assert f"Run {run_id} is starting" in pinned.json()["error"]["message"]


async def test_an_evaluation_takes_the_server_and_a_loading_client_is_told(
    parts: Parts, client: httpx.AsyncClient, server: Talker, ended: str, run_body: dict[str, Any]
) -> None:
    request = ask(client, ended)
    await taken(parts, server)
    body = {"model": run_body["model"], "data": {"validation": run_body["data"]["train"]}}
    evaluation = (await client.post("/v1/evaluations", json=body)).json()["id"]
    await parts.scheduler.step()
    assert await server.assignment() == evaluation
    reply = await request
    assert reply.status_code == 503
    assert f"{ended}@3 was unloaded, because {evaluation} needs its rollout" in reply.json()["error"]["message"]


async def test_an_unused_model_makes_room_and_is_eventually_unloaded(
    parts: Parts, client: httpx.AsyncClient, server: Talker, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(client, f"{ended}@2")
    await load(parts, server)
    assert (await first).status_code == 200
    refused = ask(client, ended)
    await eventually(lambda: len(parts.on_demand.models) == 2)
    await parts.scheduler.step()
    assert f"{ended}@2 uses the only one" in (await refused).json()["error"]["message"], "it has just answered"
    monkeypatch.setattr(on_demand, "KEEP_SECONDS", -1.0)
    server.gate.clear()
    busy, refused = ask(client, f"{ended}@2"), ask(client, ended)
    await eventually(lambda: len(parts.on_demand.models) == 2)
    monkeypatch.setattr(on_demand, "KEEP_SECONDS", 0.0)
    await parts.scheduler.step()
    assert (await refused).status_code == 503, "it is answering"
    server.gate.set()
    assert (await busy).status_code == 200
    second = ask(client, ended)
    await load(parts, server)
    assert (await second).json()["asked"][1] == f"{ended}@3"
    assert await listed(client) == [(f"{ended}@3", "loaded")]
    monkeypatch.setattr(on_demand, "IDLE_SECONDS", 0.0)
    await parts.scheduler.step()
    assert (await listed(client), await server.assignment()) == ([], None)


async def test_what_cannot_be_loaded_is_refused(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, ended: str, tmp_path: Path
) -> None:
    for model, status, text in (
        ("gpt-4", 404, "'gpt-4' does not exist. GET /v1/models"),
        (f"{tmp_path}/none", 404, "there is no such folder"),
        ("/etc/none", 404, "outside the folders"),
    ):
        reply = await ask(client, model)
        assert (reply.status_code, reply.json()["error"]["param"]) == (status, "model")
        assert text in reply.json()["error"]["message"]
    alone = ask(client, ended)
    await eventually(lambda: parts.on_demand.models)
    await parts.scheduler.step()
    assert "No rollout server is alive." in (await alone).json()["error"]["message"]
    async with talker(redis, "rollout-0") as server:
        request = ask(client, ended)
        model_id = await taken(parts, server)
        server.details = {"fault": "vLLM did not start."}
        await server.become("failed", model_id)
        await parts.scheduler.step()
        assert f"{ended}@3 cannot be loaded. vLLM did not start." in (await request).json()["error"]["message"]
        await parts.scheduler.step()
        assert await server.assignment() is None


async def test_requests_spread_over_the_servers_of_a_run_that_have_the_version(
    client: httpx.AsyncClient, redis: Redis, server: Talker
) -> None:
    async with talker(redis, "rollout-1") as second, talker(redis, "rollout-2") as third:
        for one, version in ((server, 4), (second, 4), (third, 5)):
            await one.become("ready", "run-a", version)
            one.gate.clear()
        pinned = [ask(client, "run-a@4") for _ in range(4)]
        await eventually(lambda: (server.num_asked, second.num_asked) == (2, 2))
        newest = ask(client, "run-a")
        await eventually(lambda: third.num_asked == 1)
        for one in (server, second, third):
            one.gate.set()
        assert {(await reply).json()["by"] for reply in pinned} == {"rollout-0", "rollout-1"}
        assert (await newest).json()["by"] == "rollout-2", "it had none in progress"
        server.status = 429
        assert (await ask(client, "run-a@4")).json()["by"] == "rollout-1", "which has room"

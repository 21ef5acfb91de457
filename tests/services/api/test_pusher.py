"""The weight pusher against rollout servers on real ports that reject updates, fail and recover."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.api.container import Parts, make_parts
from services.api.control import pusher
from services.api.control.weight_client import Target
from services.api.storage.database import open_database
from services.contracts import streams
from services.contracts.events import RunStateChanged, WeightsPublished
from services.runtime.settings import Settings
from tests.services.api.fakes import LOAD, FakeInstance, FakeRollout, client_of, emit, eventually, looping, served


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pusher, "FIRST_PAUSE_SECONDS", 0.02)


@contextlib.asynccontextmanager
async def ring(
    redis: Redis, client: httpx.AsyncClient, body: dict[str, Any], num_servers: int
) -> AsyncIterator[tuple[str, list[FakeRollout]]]:
    """A running run with its rollout servers at version 0."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [FakeRollout(redis, f"rollout-{index}") for index in range(num_servers)]
        for server in servers:
            server.url = await stack.enter_async_context(served(server.app))
            await server.publish()
        await FakeInstance(redis, "learner", "learner-0").publish()
        reply = await client.post("/v1/runs", json=body | {"rollout": {"num_servers": num_servers}})
        run_id = reply.json()["id"]
        for server in servers:
            await eventually(server.assignment)
            server.run_id, server.state, server.weight_version = run_id, "ready", 0
            await server.publish()
        await emit(redis, RunStateChanged(run_id=run_id, at=time.time(), state="running"))
        yield run_id, servers


async def publish(redis: Redis, run_id: str, version: int) -> None:
    """Publish weights as the learner does."""
    path, checksum = f"/weights/v{version}", f"blake3:{version}"
    await redis.hset(streams.weights(run_id), mapping={"version": version, "path": path, "checksum": checksum})
    event = WeightsPublished(run_id=run_id, at=time.time(), version=version, path=path, checksum=checksum, bytes=10)
    await emit(redis, event)


def serves(server: FakeRollout, version: int) -> bool:
    """Whether the server samples from exactly this version."""
    return server.phase == "serving" and server.checksum == f"blake3:{version}" and server.weight_version == version


async def test_all_servers_get_every_version(
    client: httpx.AsyncClient, loops: None, redis: Redis, run_body: dict[str, Any]
) -> None:
    async with ring(redis, client, run_body, 2) as (run_id, servers):
        for version in (1, 2):
            await publish(redis, run_id, version)
            await eventually(lambda version=version: all(serves(server, version) for server in servers))
        assert all(server.phases == LOAD * 2 for server in servers)

        async def all_recorded() -> list[dict[str, Any]]:
            items = (await client.get(f"/v1/runs/{run_id}/weight-pushes")).json()["items"]
            return items if len(items) == 4 else []

        pushes = await eventually(all_recorded)
        assert sorted((push["version"], push["instance"], push["error"]) for push in pushes) == [
            (1, "rollout-0", ""),
            (1, "rollout-1", ""),
            (2, "rollout-0", ""),
            (2, "rollout-1", ""),
        ]


@pytest.mark.parametrize("phase", LOAD)
async def test_a_failing_server_is_shown_out_and_healed(
    client: httpx.AsyncClient, parts: Parts, loops: None, redis: Redis, run_body: dict[str, Any], phase: str
) -> None:
    async with ring(redis, client, run_body, 2) as (run_id, (good, bad)):
        bad.fail[phase] = [500] * 3
        await publish(redis, run_id, 1)
        await eventually(lambda: serves(good, 1))

        async def out() -> bool:
            items = (await client.get("/v1/services")).json()["items"]
            return [item["instance"] for item in items if item["out_of_rotation"]] == ["rollout-1"]

        await eventually(out)
        assert not serves(bad, 1)
        assert phase in ("prepare", "pause") or bad.phase != "serving"
        await eventually(lambda: serves(bad, 1))

        async def told() -> bool:
            text = (await client.get(f"/v1/runs/{run_id}/events", params={"follow": "false"})).text
            return "rollout-1 is out of rotation" in text and "rollout-1 is back in rotation" in text

        await eventually(told)
        await eventually(lambda: parts.board.out_of_rotation.get((run_id, "rollout-1")) == 0)
        assert parts.board.runs[run_id].num_failed_pushes >= 1
        assert good.phases == LOAD


async def test_a_wrong_checksum_is_a_failure(
    client: httpx.AsyncClient, loops: None, redis: Redis, run_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ring(redis, client, run_body, 1) as (run_id, (server,)):
        await publish(redis, run_id, 1)
        await redis.hset(streams.weights(run_id), "checksum", "blake3:1")
        await eventually(lambda: serves(server, 1))
        server.lie = "blake3:other"
        await publish(redis, run_id, 2)

        async def failed() -> list[str]:
            pushes = (await client.get(f"/v1/runs/{run_id}/weight-pushes")).json()["items"]
            return [push["error"] for push in pushes if push["error"]]

        errors = await eventually(failed)
        assert "blake3:other" in errors[0]
        assert server.phase == "paused"
        server.lie = None
        await eventually(lambda: serves(server, 2))


async def test_versions_in_between_are_skipped(
    client: httpx.AsyncClient, loops: None, redis: Redis, run_body: dict[str, Any]
) -> None:
    async with ring(redis, client, run_body, 1) as (run_id, (server,)):
        server.finish_gate.clear()
        await publish(redis, run_id, 1)
        await eventually(lambda: "finish_weight_update" in server.phases)
        for version in (2, 3, 4):
            await publish(redis, run_id, version)
        server.finish_gate.set()
        await eventually(lambda: serves(server, 4))
        assert server.phases == LOAD * 2


async def test_an_api_that_dies_within_an_update_is_followed_by_one_that_waits_for_its_end(
    settings: Settings, parts: Parts, redis: Redis, run_body: dict[str, Any]
) -> None:
    async with client_of(parts) as client, contextlib.AsyncExitStack() as stack:
        async with looping(parts):
            run_id, (server,) = await stack.enter_async_context(ring(redis, client, run_body, 1))
            await publish(redis, run_id, 1)
            await eventually(lambda: serves(server, 1))
            server.finish_gate.clear()
            await publish(redis, run_id, 2)
            await eventually(lambda: "finish_weight_update" in server.phases[len(LOAD) :])
        await parts.pusher.close()
        assert server.phase == "loaded"
        again = make_parts(settings, redis, await open_database(settings))
        async with looping(again):
            await eventually(lambda: [held.error for held in again.pusher.servers.values() if "409" in held.error])
            server.finish_gate.set()
            await eventually(lambda: serves(server, 2))
            await eventually(lambda: [held.confirmed for held in again.pusher.servers.values() if held.confirmed])
        await again.close()


async def test_a_server_that_refuses_before_it_stops_is_not_shown_out(
    client: httpx.AsyncClient, parts: Parts, loops: None, redis: Redis, run_body: dict[str, Any]
) -> None:
    async with ring(redis, client, run_body, 1) as (run_id, (server,)):
        server.fail["prepare"] = [422] * 3
        await publish(redis, run_id, 1)
        await eventually(lambda: parts.pusher.servers["rollout-0"].num_failures if parts.pusher.servers else 0)
        assert server.phase == "serving"
        assert not parts.pusher.servers["rollout-0"].is_out
        await eventually(lambda: serves(server, 1))

        async def told() -> bool:
            text = (await client.get(f"/v1/runs/{run_id}/events", params={"follow": "false"})).text
            return "keeps sampling with older weights" in text and "has loaded version 1" in text

        await eventually(told)
        text = (await client.get(f"/v1/runs/{run_id}/events", params={"follow": "false"})).text
        assert "out of rotation" not in text
        assert text.count("keeps sampling with older weights") == 1
        errors = [push["error"] for push in (await client.get(f"/v1/runs/{run_id}/weight-pushes")).json()["items"]]
        assert sum("scripted: prepare" in error for error in errors) == 3


async def test_a_server_that_is_right_already_is_only_asked(
    settings: Settings, parts: Parts, redis: Redis, run_body: dict[str, Any]
) -> None:
    async with client_of(parts) as client, contextlib.AsyncExitStack() as stack:
        async with looping(parts):
            run_id, (server,) = await stack.enter_async_context(ring(redis, client, run_body, 1))
            await publish(redis, run_id, 1)
            await eventually(lambda: serves(server, 1))
            await eventually(lambda: parts.pusher.servers["rollout-0"].confirmed)
        again = make_parts(settings, redis, await open_database(settings))
        async with looping(again):
            await eventually(lambda: [held.confirmed for held in again.pusher.servers.values()])
        assert server.phases == LOAD
        await again.close()

        server.phase = "paused"  # what an API that died before `resume` leaves behind
        third = make_parts(settings, redis, await open_database(settings))
        async with looping(third):
            await eventually(lambda: serves(server, 1))
        await third.close()


async def test_a_server_that_fails_for_days_is_tried_in_pauses(parts: Parts, redis: Redis) -> None:
    """Thousands of failures and an invalid address are reported like any other fault."""
    server = FakeInstance(redis, "rollout", "rollout-0", "http://no:port")
    held = pusher.ServerWeights("a", server.started_at, num_failures=5000)
    await parts.pusher._bring(server.record(), held, Target(1, "/w", "blake3:1"), check_first=False)
    assert "Invalid port" in held.error
    assert held.num_failures == 5001
    assert held.retry_at > time.monotonic()


async def test_the_service_token_is_sent(settings: Settings, redis: Redis, run_body: dict[str, Any]) -> None:
    with_token = settings.model_copy(update={"service_token": "secret-of-services"})
    parts = make_parts(with_token, redis, await open_database(with_token))
    async with (
        client_of(parts) as client,
        looping(parts),
        ring(redis, client, run_body, 1) as (run_id, (server,)),
    ):
        await publish(redis, run_id, 1)
        await eventually(lambda: serves(server, 1))
        assert server.tokens_seen == {"Bearer secret-of-services"}
    await parts.close()


async def offer(redis: Redis, run_id: str, version: int) -> None:
    """Publish weights with a fast transport in addition to the store."""
    transfer = '{"transport":"nccl","device":"GPU-1","address":"10.0.0.1","port":4711}'
    await redis.hset(streams.weights(run_id), "transfer", transfer)
    await publish(redis, run_id, version)


async def test_a_fast_transport_that_fails_is_followed_by_the_store_at_once(
    client: httpx.AsyncClient, loops: None, redis: Redis, run_body: dict[str, Any]
) -> None:
    async with ring(redis, client, run_body, 1) as (run_id, (server,)):
        await offer(redis, run_id, 1)
        await eventually(lambda: serves(server, 1))
        first = server.loading["transfer"]
        assert first["offer"]["address"] == "10.0.0.1"
        for version in (2, 3, 4):
            server.fail["update_weights"] = [500]
            await offer(redis, run_id, version)
            await eventually(lambda version=version: serves(server, version))
            assert "transfer" not in server.loading
        await offer(redis, run_id, 5)
        await eventually(lambda: serves(server, 5))
        assert "transfer" not in server.loading
        assert server.phases == LOAD[1:] + (LOAD[1:4] + LOAD) * 3 + LOAD

        async def shown() -> bool:
            items = (await client.get(f"/v1/runs/{run_id}/weight-pushes")).json()["items"]
            return [item["transport"] for item in reversed(items)] == ["nccl", "store", "store", "store", "store"]

        await eventually(shown)

        async def told() -> bool:
            text = (await client.get(f"/v1/runs/{run_id}/events", params={"follow": "false"})).text
            assert "out of rotation" not in text
            return text.count("fast transport failed") == 3 and text.count("will not be retried") == 1

        await eventually(told)


async def test_weights_that_are_fetched_are_never_pushed_from_the_store(
    client: httpx.AsyncClient, loops: None, redis: Redis, run_body: dict[str, Any]
) -> None:
    """A server without a shared folder would refuse the store, even if its network keeps failing."""
    async with ring(redis, client, run_body, 1) as (run_id, (server,)):
        transfer = '{"transport":"http","url":"http://10.0.0.1:8401"}'
        await redis.hset(streams.weights(run_id), "transfer", transfer)
        server.fail["pause"] = [422] * 4  # the first phase of the stand-in that may refuse
        await publish(redis, run_id, 1)
        await eventually(lambda: serves(server, 1))
        assert server.phases == ["pause"] * 4 + LOAD[1:]
        assert server.loading["transfer"]["offer"]["url"] == "http://10.0.0.1:8401"

        async def shown() -> bool:
            items = (await client.get(f"/v1/runs/{run_id}/weight-pushes")).json()["items"]
            text = (await client.get(f"/v1/runs/{run_id}/events", params={"follow": "false"})).text
            assert "out of rotation" not in text
            return {item["transport"] for item in items if not item["error"]} == {"http"}

        await eventually(shown)

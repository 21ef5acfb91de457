"""Keys: shown once, stored as digests, with roles, revocable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from redis.asyncio import Redis

from services.api.container import Parts, make_parts
from services.api.storage.database import open_database
from services.runtime.settings import Settings
from tests.services.api.fakes import client_of, eventually

BOOTSTRAP = "correct horse battery"


@pytest.fixture
async def keyed_parts(settings: Settings, redis: Redis) -> AsyncIterator[Parts]:
    with_key = settings.model_copy(update={"api_key": BOOTSTRAP})
    parts = make_parts(with_key, redis, await open_database(with_key))
    yield parts
    await parts.close()


@pytest.fixture
async def keyed(keyed_parts: Parts) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends the environment's key by default."""
    async with client_of(keyed_parts, headers=bearer(BOOTSTRAP)) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def made(client: httpx.AsyncClient, role: str = "read") -> dict[str, Any]:
    reply = await client.post("/v1/keys", json={"name": f"a {role} key", "role": role})
    assert reply.status_code == 201, reply.text
    found: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"/v1/keys/{found['id']}"
    return found


@pytest.mark.both_databases
async def test_a_key_is_shown_once_and_kept_as_a_digest(keyed_parts: Parts, keyed: httpx.AsyncClient) -> None:
    key = await made(keyed)
    assert key["key"].startswith(f"turnout_{key['id']}_")
    assert len(key["key"]) > 50
    listed = await keyed.get("/v1/keys")
    assert listed.json()["items"] == [{name: key[name] for name in ("id", "name", "role", "created_at")}]
    async with keyed_parts.database.read() as session:
        rows = (await session.execute(sa.text("SELECT * FROM api_keys"))).all()
    secret = key["key"].split("_", 2)[2]  # the random part holds "_" too
    assert secret not in listed.text
    assert secret not in repr(rows)


async def test_what_each_role_may_do(keyed: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    run_id = (await keyed.post("/v1/runs", json=run_body)).json()["id"]
    read, operate = bearer((await made(keyed, "read"))["key"]), bearer((await made(keyed, "operate"))["key"])
    paths = [f"/v1/runs/{run_id}{end}" for end in ("", "/steps", "/checkpoints")]
    for path in ("/v1/runs", "/v1/services", "/metrics", *paths):
        assert (await keyed.get(path, headers=read)).status_code == 200, path
        assert (await keyed.get(path, headers=operate)).status_code == 200, path
    for role in ("read", "use", "operate"):
        own = await keyed.get("/v1/role", headers=bearer((await made(keyed, role))["key"]))
        assert (own.status_code, own.json()) == (200, {"role": role})
    changes = [
        ("POST", "/v1/runs"),
        ("DELETE", f"/v1/runs/{run_id}"),
        ("POST", "/v1/keys"),
        ("GET", "/v1/keys"),
    ]
    changes += [("POST", f"/v1/runs/{run_id}/{action}") for action in ("pause", "resume", "stop", "fork")]
    for method, path in changes:
        reply = await keyed.request(method, path, headers=read)
        assert (reply.status_code, reply.headers["content-type"]) == (403, "application/problem+json"), path
        assert reply.json()["remedy"]
        assert (await keyed.request(method, path, headers=operate)).status_code != 403, path


@pytest.mark.both_databases
async def test_a_revoked_key_opens_nothing(keyed: httpx.AsyncClient) -> None:
    key, other = await made(keyed), await made(keyed)
    assert (await keyed.get("/v1/runs", headers=bearer(key["key"]))).status_code == 200
    assert (await keyed.delete(f"/v1/keys/{key['id']}")).status_code == 204
    refused = await keyed.get("/v1/runs", headers=bearer(key["key"]))
    assert (refused.status_code, refused.json()["detail"]) == (401, "The key is wrong or was revoked.")
    assert (await keyed.get("/v1/runs", headers=bearer(other["key"]))).status_code == 200
    assert (await keyed.delete(f"/v1/keys/{key['id']}")).status_code == 404


async def test_a_revoked_keys_event_streams_end(
    keyed_parts: Parts, keyed: httpx.AsyncClient, run_body: dict[str, Any]
) -> None:
    """Immediately, even if nothing happens; streams of other keys continue, and the ended one sends nothing more."""
    run_id = (await keyed.post("/v1/runs", json=run_body)).json()["id"]
    key, other = await made(keyed), await made(keyed)
    headers = [bearer(key["key"]), bearer(other["key"]), bearer(BOOTSTRAP)]
    follow = [asyncio.create_task(keyed.get(f"/v1/runs/{run_id}/events", headers=header)) for header in headers]
    await eventually(lambda: keyed_parts.broadcaster.num_listeners == 3)
    assert (await keyed.delete(f"/v1/keys/{key['id']}")).status_code == 204
    await keyed_parts.journal.note(run_id, "info", "said later")
    ended = await follow[0]
    assert (ended.status_code, "said later" in ended.text) == (200, False)
    assert (await keyed.get(f"/v1/runs/{run_id}/events", headers=headers[0])).status_code == 401
    assert [task.done() for task in follow] == [True, False, False]
    for task in follow[1:]:
        task.cancel()
    await asyncio.wait(follow)


async def test_keys_made_and_revoked_while_the_keys_are_read_count(
    keyed_parts: Parts, keyed: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = await made(keyed)
    listed = keyed_parts.keys.rows
    changed: list[Any] = []

    async def list_slowly() -> Any:
        found = await listed()
        if not changed:
            changed.append(None)  # the calls below read no keys
            monkeypatch.undo()
            changed[0] = await keyed_parts.keys.create("made meanwhile", "read")
            await keyed_parts.keys.revoke(gone["id"])
        return found

    monkeypatch.setattr(keyed_parts.keys, "rows", list_slowly)
    assert await keyed_parts.keys.find(gone["key"].encode()) is None
    assert await keyed_parts.keys.find(gone["key"].encode()) is None
    assert await keyed_parts.keys.find(changed[0].key.encode()) is not None


async def test_keys_outlive_a_restart(settings: Settings, redis: Redis, keyed: httpx.AsyncClient) -> None:
    key = await made(keyed)
    again = settings.model_copy(update={"api_key": "another one of the sort"})
    parts = make_parts(again, redis, await open_database(again))
    async with client_of(parts) as client:
        assert (await client.get("/v1/runs", headers=bearer(key["key"]))).status_code == 200
        assert (await client.get("/v1/runs", headers=bearer(BOOTSTRAP))).status_code == 401
    await parts.close()


async def test_an_api_without_keys_makes_none(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/keys", json={"name": "x"})
    assert (reply.status_code, reply.json()["title"]) == (409, "Conflict")
    assert "TURNOUT_API_KEY" in reply.json()["remedy"]


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": "a\nb"}, {"name": "a", "role": "admin"}, {"name": "a", "x": 1}]
)
async def test_wrong_keys_are_not_made(keyed: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await keyed.post("/v1/keys", json=body)).status_code == 422
    assert (await keyed.get("/v1/keys")).json()["items"] == []


async def test_a_database_that_is_away_lets_nobody_in(
    keyed_parts: Parts, keyed: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise sa.exc.OperationalError("SELECT", {}, Exception("away"))

    monkeypatch.setattr(keyed_parts.keys, "rows", fail)
    reply = await keyed.get("/v1/runs")
    assert (reply.status_code, reply.json()["title"]) == (503, "Unavailable")

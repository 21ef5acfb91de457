"""Cached responses: reused while nothing changed, never afterwards, and never for a fault."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException

from services.api.http.response_cache import MAX_BYTES, Answers


@pytest.fixture
def database() -> SimpleNamespace:
    return SimpleNamespace(version=0)


@pytest.fixture
async def client(database: Any):
    app = FastAPI()
    app.state.asked = 0
    app.state.gate = asyncio.Event()
    app.state.gate.set()

    @app.get("/v1/runs/{run_id}/steps")
    async def steps(run_id: str, after: int = 0) -> dict[str, object]:
        app.state.asked += 1
        number = app.state.asked
        await app.state.gate.wait()
        if run_id == "missing":
            raise HTTPException(404)
        if run_id == "broken":
            raise ValueError
        return {"asked": number, "run": run_id, "after": after, "text": "x" * (MAX_BYTES if run_id == "long" else 0)}

    @app.get("/v1/{path:path}")
    async def other(path: str) -> int:
        app.state.asked += 1
        return int(app.state.asked)

    app.add_middleware(Answers, database=database)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        client.state = app.state  # type: ignore[attr-defined]
        yield client


async def test_an_answer_is_given_again_until_the_database_changes(client, database: SimpleNamespace) -> None:
    first = await client.get("/v1/runs/a/steps?after=3")
    again = await client.get("/v1/runs/a/steps?after=3")
    assert first.json()["after"] == 3
    assert (again.content, again.headers) == (first.content, first.headers)
    assert (await client.get("/v1/runs/a/steps?after=4")).json()["asked"] == 2
    assert (await client.get("/v1/runs/b/steps?after=3")).json()["asked"] == 3
    database.version += 1
    assert (await client.get("/v1/runs/a/steps?after=3")).json()["asked"] == 4


async def test_one_request_answers_all_that_come_meanwhile(client, database: SimpleNamespace) -> None:
    client.state.gate.clear()
    waiting = [asyncio.create_task(client.get("/v1/runs/a/steps")) for _ in range(5)]
    while not client.state.asked:
        await asyncio.sleep(0)
    database.version += 1  # requests after this must not get an older response
    later = asyncio.create_task(client.get("/v1/runs/a/steps"))
    while client.state.asked < 2:
        await asyncio.sleep(0)
    client.state.gate.set()
    assert {(await answer).json()["asked"] for answer in waiting} == {1}
    assert (await later).json()["asked"] == 2


@pytest.mark.parametrize(("path", "status"), [("missing/steps", 404), ("broken/steps", 500), ("long/steps", 200)])
async def test_faults_and_long_answers_are_made_anew_for_each(client, path: str, status: int) -> None:
    client.state.gate.clear()
    waiting = [asyncio.create_task(client.get(f"/v1/runs/{path}")) for _ in range(3)]
    while not client.state.asked:
        await asyncio.sleep(0)
    client.state.gate.set()
    assert {(await answer).status_code for answer in waiting} == {status}
    assert client.state.asked == 3


@pytest.mark.parametrize(
    ("path", "is_reused"),
    [
        ("runs", True),
        ("evaluations", True),
        ("evaluations/a", True),
        ("evaluations/a/difference?second=b", True),
        ("experiments/a/results", True),
        ("experiments/a", False),  # tells the time that is left
        ("runs/a/checkpoints", False),  # depends on the disk
        ("services", False),
    ],
)
async def test_only_what_the_database_decides_is_reused(client, path: str, is_reused: bool) -> None:
    found = [(await client.get(f"/v1/{path}")).json() for _ in range(2)]
    assert found == ([1, 1] if is_reused else [1, 2])

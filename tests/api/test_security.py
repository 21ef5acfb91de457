"""Who may call: the key, bodies, and what the process refuses to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.api.__main__ import main
from services.api.database import open_database
from services.api.parts import make_parts
from services.api.security import MAX_BODY_BYTES, check_exposure
from services.contracts.errors import ConfigurationError
from services.runtime.settings import Settings
from tests.api.fakes import client_of

KEY = "correct horse battery"


@pytest.fixture
async def guarded(settings: Settings, redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    with_key = settings.model_copy(update={"api_key": KEY})
    parts = make_parts(with_key, redis, await open_database(with_key))
    async with client_of(parts) as client:
        yield client
    await parts.close()


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "é"])
@pytest.mark.parametrize("path", ["/v1/runs", "/metrics", "/docs", "/openapi.json", "/v1/runs/x/events", "/nothing"])
async def test_without_the_key_nothing_is_told(guarded: httpx.AsyncClient, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    reply = await guarded.get(path, headers=headers)
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    assert reply.headers["content-type"] == "application/problem+json"
    assert KEY not in reply.text


async def test_with_the_key_and_on_health_routes(guarded: httpx.AsyncClient) -> None:
    for scheme in ("Bearer", "bearer"):
        assert (await guarded.get("/v1/runs", headers={"Authorization": f"{scheme} {KEY}"})).status_code == 200
    assert (await guarded.get("/healthz")).status_code == 200
    assert (await guarded.get("/readyz")).status_code == 200


async def test_large_bodies_are_refused(client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    reply = await client.post("/v1/runs", json=run_body | {"name": "x" * MAX_BODY_BYTES})
    assert (reply.status_code, reply.headers["content-type"]) == (413, "application/problem+json")

    async def endless() -> AsyncIterator[bytes]:
        yield b"{"

    assert (await client.post("/v1/runs", content=endless())).status_code == 413


def test_listening_for_others_needs_a_key() -> None:
    check_exposure(Settings(host="127.0.0.1"))
    check_exposure(Settings(host="0.0.0.0", api_key=KEY))
    with pytest.raises(ConfigurationError) as caught:
        check_exposure(Settings(host="0.0.0.0"))
    assert caught.value.field == "TURNOUT_API_KEY"


def test_the_process_refuses_to_listen_for_others_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TURNOUT_HOST", "0.0.0.0")
    monkeypatch.setenv("TURNOUT_SERVICE_TOKEN", "t")
    monkeypatch.setenv("TURNOUT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TURNOUT_API_KEY", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Set TURNOUT_API_KEY" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()

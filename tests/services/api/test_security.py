"""Who may call, how often and from where; bodies; headers; secrets; and when the process refuses to start."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from redis.asyncio import Redis

from services.api.__main__ import main
from services.api.container import Parts, make_parts
from services.api.http.limiter import RateLimiter
from services.api.http.security import MAX_BODY_BYTES, check_exposure
from services.api.storage.database import open_database
from services.api.storage.writer_lock import own_database
from services.contracts.errors import ConfigurationError, UnavailableError
from services.runtime.logs import configure_logs
from services.runtime.settings import Settings, load_settings
from tests.services.api.fakes import client_of, eventually, looping

KEY = "correct horse battery"
READ_KEY = "staple for Prometheus"


@pytest.fixture
async def guarded(settings: Settings, redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    with_key = settings.model_copy(update={"api_key": KEY, "read_key": READ_KEY})
    parts = make_parts(with_key, redis, await open_database(with_key))
    async with client_of(parts) as client:
        yield client
    await parts.close()


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "é"])
@pytest.mark.parametrize("path", ["/v1/runs", "/metrics", "/v1/keys", "/v1/runs/x/events", "/nothing"])
async def test_without_the_key_nothing_is_told(guarded: httpx.AsyncClient, path: str, header: str | None) -> None:
    headers = {} if header is None else {b"Authorization": header.encode()}
    reply = await guarded.get(path, headers=headers)
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    assert reply.headers["content-type"] == "application/problem+json"
    assert KEY not in reply.text


async def test_with_the_key_and_on_health_routes(guarded: httpx.AsyncClient) -> None:
    for scheme in ("Bearer", "bearer"):
        assert (await guarded.get("/v1/runs", headers={"Authorization": f"{scheme} {KEY}"})).status_code == 200
    assert (await guarded.get("/healthz")).status_code == 200
    for path in ("/readyz", "/docs", "/openapi.json", "/"):
        assert (await guarded.get(path)).status_code == 200


async def test_the_read_key_of_the_environment_may_look_and_no_more(guarded: httpx.AsyncClient) -> None:
    headers = {"Authorization": f"Bearer {READ_KEY}"}
    for path in ("/v1/runs", "/metrics"):
        assert (await guarded.get(path, headers=headers)).status_code == 200
    for method, path in (("POST", "/v1/runs"), ("GET", "/v1/keys"), ("POST", "/v1/keys")):
        assert (await guarded.request(method, path, headers=headers, json={})).status_code == 403


async def test_large_bodies_are_refused(client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    reply = await client.post("/v1/runs", json=run_body | {"name": "x" * MAX_BODY_BYTES})
    assert (reply.status_code, reply.headers["content-type"]) == (413, "application/problem+json")

    async def endless() -> AsyncIterator[bytes]:
        yield b"{"

    assert (await client.post("/v1/runs", content=endless())).status_code == 413


def test_a_read_key_that_can_be_guessed_is_refused() -> None:
    exposed = Settings(host="0.0.0.0", api_key=KEY, service_token="t" * 32, read_key="short")
    with pytest.raises(ConfigurationError, match="TURNOUT_READ_KEY has fewer than 16"):
        check_exposure(exposed)


def test_listening_for_others_needs_a_key() -> None:
    check_exposure(Settings(host="127.0.0.1"))
    check_exposure(Settings(host="0.0.0.0", api_key=KEY))
    for key, words in (("", "is not set"), ("letmein", "fewer than 16")):
        with pytest.raises(ConfigurationError, match=words) as caught:
            check_exposure(Settings(host="0.0.0.0", api_key=key))
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


@pytest.mark.parametrize("name", ["TURNOUT_API_KEY", "TURNOUT_SERVICE_TOKEN"])
@pytest.mark.parametrize("secret", ["hunter2\n", " hunter2", "hunter2\u00e9"])
def test_a_secret_that_no_header_takes_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, secret: str
) -> None:
    """Libraries would quote it in errors, which end up in a run's history."""
    monkeypatch.setenv(name, secret)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert caught.value.field == name
    assert "hunter2" not in str(caught.value)


async def limited(settings: Settings, redis: Redis, **changes: Any) -> Parts:
    changed = settings.model_copy(update=changes)
    return make_parts(changed, redis, await open_database(changed))


async def test_a_client_that_calls_too_often_is_told_when_to_come_back(settings: Settings, redis: Redis) -> None:
    parts = await limited(settings, redis, rate_limit="5/day", api_key=KEY)
    with_key = {"Authorization": f"Bearer {KEY}"}
    async with client_of(parts) as client:
        paths = ["/v1/runs", "/v1/runs/none/events", "/metrics", "/v1/services", "/nothing"]
        statuses = [(await client.get(path, headers=with_key)).status_code for path in paths]
        assert statuses == [200, 404, 200, 200, 404]
        refused = await client.get("/v1/runs", headers=with_key)
        assert (refused.status_code, refused.headers["content-type"]) == (429, "application/problem+json")
        assert 0 < int(refused.headers["retry-after"]) <= 86400
        assert (await client.get("/healthz")).status_code == 200
        strangers = [(await client.get("/v1/runs")).status_code for _ in range(6)]  # counted separately
        assert strangers == [401] * 5 + [429]
    await parts.close()


def test_a_limit_that_is_none_is_named() -> None:
    with pytest.raises(ConfigurationError, match="TURNOUT_RATE_LIMIT"):
        RateLimiter("often")
    assert RateLimiter("").wait_seconds("anyone") is None


@pytest.mark.parametrize(
    ("method", "headers", "allowed"),
    [
        ("GET", {}, True),
        ("GET", {"Host": "localhost:8400"}, True),
        ("GET", {"Host": "[::1]:8400"}, True),
        ("GET", {"Host": "evil.example:8400"}, False),
        ("GET", {"Host": "127.0.0.1.evil.example"}, False),
        ("GET", {"Host": "[:::"}, False),
        ("POST", {"Host": "127.0.0.1:8400", "Origin": "http://127.0.0.1:8400"}, True),
        ("POST", {"Host": "127.0.0.1:8400", "Origin": "http://127.0.0.1:9999"}, False),
        ("POST", {"Host": "127.0.0.1:8400", "Origin": "https://evil.example"}, False),
        ("POST", {"Host": "127.0.0.1:8400", "Origin": "null"}, False),
    ],
)
async def test_without_a_key_other_sites_get_nothing(
    client: httpx.AsyncClient, method: str, headers: dict[str, str], allowed: bool
) -> None:
    """A foreign page that is open in a browser on this machine can reach loopback. It must not control runs."""
    reply = await client.request(method, "/v1/runs" if method == "GET" else "/v1/runs/x/stop", headers=headers)
    assert (reply.status_code != 403) == allowed


async def test_no_answer_lets_other_sites_read_it(client: httpx.AsyncClient, guarded: httpx.AsyncClient) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for answering in (client, guarded):
        for method, path in (("OPTIONS", "/v1/runs"), ("GET", "/v1/runs"), ("GET", "/"), ("GET", "/docs")):
            reply = await answering.request(method, path, headers=asked)
            assert not [name for name in reply.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/v1/runs", "/metrics", "/healthz", "/nothing", "fault"]
)
async def test_every_answer_has_strict_headers(
    parts: Parts, client: httpx.AsyncClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "keys" if path == "fault" else "refresh", None)
    answer = await client.get("/v1/keys" if path == "fault" else path)
    assert (answer.status_code == 500) == (path == "fault")
    headers = answer.headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe-eval" not in headers["content-security-policy"]
    assert "script-src 'unsafe-inline'" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


async def test_links_cannot_lead_out_of_the_roots(
    client: httpx.AsyncClient, run_body: dict[str, Any], tmp_path: Path
) -> None:
    for name, target in (("link", "/etc/passwd"), ("loop", tmp_path / "loop"), ("up", tmp_path.parent)):
        (tmp_path / name).symlink_to(target)
    for path in ("link", "loop", "up/x", "../x", "model/../../x"):
        body = run_body | {"data": {"train": f"{tmp_path}/{path}"}}
        reply = await client.post("/v1/runs", json=body)
        assert (reply.status_code, reply.json()["field"]) == (422, "data.train"), path
        assert "outside the folders" in reply.json()["detail"], path
        assert "TURNOUT_ROOTS" in reply.json()["remedy"]
    (tmp_path / "inside").symlink_to(tmp_path / "train.jsonl")
    body = run_body | {"data": {"train": f"{tmp_path}/inside"}}
    assert (await client.post("/v1/runs", json=body)).status_code == 201


@pytest.mark.parametrize(
    "name", ["..", "../..", "folder/sub/", "folder", "a\\b", "%2e%2e/x", "owner/n\u00e4me", "o/n@main", "/etc"]
)
async def test_no_hub_name_leads_out_of_the_roots(
    client: httpx.AsyncClient, run_body: dict[str, Any], name: str
) -> None:
    for field, value in (("train", f"hub:{name}"), ("validation", f"hub:{name}:train")):
        body = run_body | {"data": run_body["data"] | {field: value}}
        reply = await client.post("/v1/runs", json=body)
        assert (reply.status_code, reply.json()["field"]) == (422, f"data.{field}")
        assert "owner/name" in reply.json()["remedy"]
    reply = await client.post("/v1/runs", json=run_body | {"model": {"path": f"hub:{name}"}})
    assert (reply.status_code, reply.json()["field"]) == (422, "model.path")


def test_the_roots_that_hold_where_none_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TURNOUT_ROOTS")
    assert Settings().root_folders == [tmp_path, tmp_path / ".turnout"]
    assert Settings(roots=f"/srv/models:{tmp_path}").root_folders == [Path("/srv/models"), tmp_path]


SECRETS = {
    "TURNOUT_API_KEY": "key-of-the-api-d41d8cd9",
    "TURNOUT_SERVICE_TOKEN": "token-of-the-services-98f00b20",
    "TURNOUT_DATABASE_URL": "postgresql://u:password-of-the-database-4e9800998@127.0.0.1:1/none",
}
WORDS = ("d41d8cd9", "98f00b20", "4e9800998", "7777aaaa")


@pytest.fixture
def logs_to_stderr(settings: Settings) -> Iterator[None]:
    """Logs as a service writes them, for this test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logs(settings, "api")
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.mark.usefixtures("logs_to_stderr")
async def test_secrets_are_in_no_answer_record_or_log(
    settings: Settings, redis: Redis, run_body: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    parts = await limited(
        settings, redis, api_key=SECRETS["TURNOUT_API_KEY"], service_token=SECRETS["TURNOUT_SERVICE_TOKEN"]
    )
    seen = [repr(parts.settings), str(parts.settings)]
    with_key = {"Authorization": f"Bearer {SECRETS['TURNOUT_API_KEY']}"}
    async with client_of(parts, headers=with_key) as client, looping(parts):
        created = await client.post("/v1/runs", json=run_body)
        made = (await client.post("/v1/keys", json={"name": "k"})).json()["key"].split("_", 2)[2]
        await eventually(lambda: parts.status.rounds.get("metrics", 0) > 0)
        paths = ["/v1/runs", created.headers["location"], "/v1/services", "/v1/keys", "/metrics", "/openapi.json"]
        paths += ["/healthz", "/readyz", "/", "/docs", "/nothing", f"{created.headers['location']}/events?follow=false"]
        for path in paths:
            seen.append((await client.get(path)).text)
        for bad in ({"Authorization": f"Basic {SECRETS['TURNOUT_API_KEY']}"}, {"Authorization": "Bearer 7777aaaa"}):
            seen.append((await client.get("/v1/runs", headers=bad)).text)
        seen.append((await client.post("/v1/runs", content=b"{", headers={"Content-Type": "application/json"})).text)
        keys = [key async for key in redis.scan_iter()]
        seen += [repr(await redis.get(key)) for key in keys if await redis.type(key) == b"string"]
        parts.settings.database_url = SECRETS["TURNOUT_DATABASE_URL"]
        with pytest.raises(UnavailableError) as caught:
            await open_database(parts.settings)
        seen.append(str(caught.value))
        with pytest.raises(UnavailableError) as caught:
            own_database(parts.settings)
        seen.append(str(caught.value))
    await parts.close()
    seen += capfd.readouterr()
    assert len(seen) > 15
    for word in (*WORDS, made):
        assert not [text for text in seen if word in text]


def test_errors_at_the_start_name_no_secret(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The real process: a queue server with a password that does not answer."""
    environment = {**os.environ, **SECRETS, "TURNOUT_HOME": str(tmp_path), "TURNOUT_LOG_FORMAT": "text"}
    environment |= {"TURNOUT_REDIS_URL": "redis://user:7777aaaa@127.0.0.1:1/0", "TURNOUT_DATABASE_URL": ""}
    ended = subprocess.run([sys.executable, "-m", "services.api"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "redis://***@127.0.0.1:1/0" in ended.stderr
    assert not [word for word in WORDS if word in ended.stderr + ended.stdout]

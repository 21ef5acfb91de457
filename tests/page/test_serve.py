"""The page's files and run files over HTTP, without a browser."""

from __future__ import annotations

import gzip
import posixpath
import re
from collections.abc import AsyncIterator

import httpx
import pytest
import yaml
from fastapi import FastAPI

from services.api.http import problems
from services.api.page.serve import Page
from services.api.resources.run_files.endpoints import router
from tests.conftest import ROOT

SHIPPED = {path.name for path in (ROOT / "examples/runs").glob("*.yaml")}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.add_middleware(Page)
    app.include_router(router)
    problems.install(app, {})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://page") as made:
        yield made


async def test_the_page_has_strict_headers(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"


async def test_files_are_versioned_and_kept_the_page_is_asked_for_again(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["cache-control"] == "no-cache"
    addresses = re.findall(r'"(/page/[^"]+)"', page.text)
    assert any("plotly" in address for address in addresses)
    for address in set(addresses):
        answer = await client.get(address)
        assert answer.status_code == 200, address
        assert "immutable" in answer.headers["cache-control"]


async def test_every_file_that_a_module_imports_is_there(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    base = re.search(r'"(/page/[0-9a-f]+/)app\.js"', page.text)
    assert base is not None
    seen, todo = set(), {"app.js"}
    while todo:
        name = todo.pop()
        seen.add(name)
        answer = await client.get(base[1] + name)
        assert answer.headers["content-type"].startswith("text/javascript"), name
        imported = re.findall(r"from '(\.[\w./]+)'", answer.text)
        todo |= {posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) for path in imported} - seen
    static = ROOT / "services/api/page/static"
    modules = {path.relative_to(static).as_posix() for path in static.rglob("*.js")}
    assert seen == modules


async def test_nothing_is_fetched_from_elsewhere() -> None:
    for path in (ROOT / "services/api/page").rglob("*"):
        if path.suffix in {".js", ".css", ".html"}:
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|@import|url\(", text), path.name


async def test_compressed_only_for_those_who_accept_it(client: httpx.AsyncClient) -> None:
    plain = await client.get("/", headers={"Accept-Encoding": "identity"})
    async with client.stream("GET", "/", headers={"Accept-Encoding": "gzip"}) as packed:
        raw = b"".join([part async for part in packed.aiter_raw()])
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(raw) == plain.content


@pytest.mark.parametrize("path", ["/page/old/app.js", "/page/../serve.py", "/page/%2e%2e/serve.py", "/page/"])
async def test_no_other_file_is_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


async def test_shipped_run_files_are_listed_and_read(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    items = (await client.get("/v1/run-files")).json()["items"]
    assert {item["name"] for item in items} == SHIPPED
    for item in items:
        answer = await client.post("/v1/run-files/check", json={"text": item["text"]})
        assert answer.status_code == 200, item["name"]
        assert answer.json()["config"]["name"] == yaml.safe_load(item["text"])["name"]


async def test_a_wrong_field_is_named(client: httpx.AsyncClient) -> None:
    text = "name: a\nmodel: {path: m}\ndata: {train: t}\nobjective: {clip_low: 7}\ntraining: {steps: 1}\n"
    answer = await client.post("/v1/run-files/check", json={"text": text})
    assert answer.status_code == 200
    assert answer.json()["config"] is None
    assert answer.json()["problem"]["field"] == "objective.clip_low"
    assert answer.json()["problem"]["detail"].startswith("Line 4: objective.clip_low is 7")


async def test_a_text_that_is_not_yaml_is_a_verdict_with_its_line(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/run-files/check", json={"text": "a: 1\nb: [1\n"})
    assert answer.status_code == 200
    assert answer.json()["problem"]["detail"].startswith("Line 3: not YAML")

"""The learner serves weights and checkpoints to machines without a shared folder; fetching survives a bad network."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from blake3 import blake3
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.learner.connections.files import add_file_routes
from services.runtime.settings import Settings
from services.runtime.weights import fetch
from services.runtime.weights.checkpoint_files import CheckpointManifest, FileEntry, checkpoint_folder, sha256_of
from services.runtime.weights.fetch import FetchError, Origin
from services.runtime.weights.store import MANIFEST, WeightStore
from tests.services.api.fakes import served

TOKEN = "token of the services"
WEIGHTS = os.urandom(3 << 20)


class Cut:
    """A network that breaks connections: of each of the first responses, only a given number of bytes arrives."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.after: list[int] = []
        self.ranges: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope.get("headers", [])}
        left = None
        if scope["type"] == "http" and not scope["path"].endswith(MANIFEST):
            self.ranges.append(headers.get("range", ""))
            left = self.after.pop(0) if self.after else None

        async def some(message: Message) -> None:
            nonlocal left
            body = message.get("body", b"")
            if left is None or message["type"] != "http.response.body":
                await send(message)
                return
            await send({**message, "body": body[:left], "more_body": True})
            left -= len(body)
            if left <= 0:
                raise ConnectionAbortedError  # uvicorn closes the connection

        await self.app(scope, receive, some)


class Learner:
    """A learner's home, served over HTTP."""

    def __init__(self, home: Path) -> None:
        self.home = home
        app = FastAPI()
        add_file_routes(app, Settings(home=home, service_token=TOKEN))
        self.network = Cut(app)
        self.url = ""

    def publish(self, version: int, data: bytes = WEIGHTS) -> str:
        def write(folder: Path) -> None:
            (folder / "model.safetensors").write_bytes(data)

        return WeightStore(self.home / "runs" / "run" / "weights", "run").publish(version, write).checksum

    def origin(self, path: str = "weights/3", token: str = TOKEN) -> Origin:
        return Origin(f"{self.url}/v1/runs/run/{path}", token)


@pytest.fixture
async def learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Learner]:
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.01)
    found = Learner(tmp_path / "learner")
    async with served(found.network) as url:
        found.url = url
        yield found


async def test_a_file_arrives_complete_over_a_connection_that_breaks(learner: Learner, tmp_path: Path) -> None:
    learner.publish(3)
    learner.network.after = [1 << 20, 0, 1 << 19]
    files = [("model.safetensors", len(WEIGHTS))]
    await asyncio.to_thread(learner.origin().fetch, files, tmp_path / "here")
    assert (tmp_path / "here" / "model.safetensors").read_bytes() == WEIGHTS
    starts = [int(asked.removeprefix("bytes=").removesuffix("-") or 0) for asked in learner.network.ranges]
    assert starts[0] == 0
    assert starts[1] == starts[2] > 1 << 19, "nothing arrived over the second connection"
    assert starts[3] > starts[2]
    await asyncio.to_thread(learner.origin().fetch, files, tmp_path / "here")
    assert len(learner.network.ranges) == 4, "a file that is there is not fetched again"


async def test_the_next_fetch_continues_one_that_failed(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner.publish(3)
    learner.network.after = [1 << 20] + [0] * 50
    files = [("model.safetensors", len(WEIGHTS))]
    monkeypatch.setattr(fetch, "PATIENCE_SECONDS", 0.05)
    with pytest.raises(FetchError, match=r"after 0 s without data from .*model.safetensors.*Check the network"):
        await asyncio.to_thread(learner.origin().fetch, files, tmp_path / "here")
    assert not (tmp_path / "here" / "model.safetensors").exists()
    learner.network.after.clear()
    await asyncio.to_thread(learner.origin().fetch, files, tmp_path / "here")
    assert (tmp_path / "here" / "model.safetensors").read_bytes() == WEIGHTS
    assert learner.network.ranges[-1] not in ("", "bytes=0-")


@pytest.mark.parametrize(
    ("path", "token", "files", "reason"),
    [
        ("weights/3", "another", [("model.safetensors", 5)], "TURNOUT_SERVICE_TOKEN differs"),
        ("weights/4", TOKEN, [("model.safetensors", 5)], "does not exist or was deleted"),
        ("weights/3", TOKEN, [("model.safetensors", 5)], "longer than the 5 bytes"),
        ("weights/3", TOKEN, [("model.safetensors", 1 << 60)], "has room for"),
    ],
)
async def test_a_failed_fetch_says_why(
    learner: Learner, tmp_path: Path, path: str, token: str, files: list[tuple[str, int]], reason: str
) -> None:
    learner.publish(3)
    with pytest.raises(FetchError, match=reason):
        await asyncio.to_thread(learner.origin(path, token).fetch, files, tmp_path / "here")


async def test_a_manifest_that_never_ends_is_cut_off(learner: Learner) -> None:
    learner.publish(3)
    with pytest.raises(FetchError, match="longer than 10 bytes"):
        await asyncio.to_thread(learner.origin().read, MANIFEST, 10)


async def test_only_files_of_manifests_are_served_and_only_to_services(learner: Learner) -> None:
    learner.publish(3, b"weights")
    folder = checkpoint_folder(learner.home / "runs" / "run", 10)
    (folder / "hf").mkdir(parents=True)
    (folder / "hf" / "model.safetensors").write_bytes(b"model")
    entry = FileEntry("hf/model.safetensors", 5, sha256_of(folder / "hf" / "model.safetensors"))
    link = FileEntry("link", 5, "0")
    (folder / MANIFEST).write_bytes(msgspec.json.encode(CheckpointManifest([entry, link])))
    (folder / "unlisted").write_bytes(b"secret")
    (folder / "link").symlink_to(folder / "hf" / "model.safetensors")
    (learner.home / "turnout.db").write_bytes(b"secret")

    async def get(path: str, **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as client:
            headers = {"Authorization": f"Bearer {TOKEN}", **headers}
            return await client.get(f"{learner.url}/v1/runs/{path}", headers=headers)

    body: Any = (await get("run/weights/3/manifest.json")).json()
    assert body["files"][0]["blake3"] == blake3(b"weights").hexdigest()
    assert (await get("run/weights/3/model.safetensors")).content == b"weights"
    part = await get("run/weights/3/model.safetensors", Range="bytes=2-")
    assert (part.status_code, part.content) == (206, b"ights")
    assert (await get("run/checkpoints/10/hf/model.safetensors")).content == b"model"
    for path in (
        "run/checkpoints/10/unlisted",
        "run/checkpoints/10/link",
        "run/checkpoints/10/hf",
        "run/checkpoints/10/..%2F..%2F..%2F..%2Fturnout.db",
        "run/checkpoints/11/manifest.json",
        "run/weights/3/..%2F..%2F..%2F..%2Fturnout.db",
        "%2e%2e/weights/3/manifest.json",
        "other/weights/3/manifest.json",
    ):
        assert (await get(path)).status_code == 404, path
    for path in ("run/weights/3/manifest.json", "run/checkpoints/10/manifest.json"):
        assert (await get(path, Authorization="Bearer another")).status_code == 401

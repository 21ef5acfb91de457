"""Fakes of the other services, and helpers that drive the API."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import msgspec
from fastapi import FastAPI, Request, Response
from redis.asyncio import Redis
from starlette.types import ASGIApp

from services.api.application import make_application, run_loops
from services.api.container import Parts
from services.contracts import codec, streams
from services.contracts.events import Event
from services.contracts.heartbeat import ServiceKind, ServiceRecord, ServiceState
from services.runtime.http.server import http_server
from services.runtime.process import bind

LOAD = ["prepare", "pause", "start_weight_update", "update_weights", "finish_weight_update", "resume"]
"""The phases of one update."""


async def eventually(
    check: Callable[[], Awaitable[Any]] | Callable[[], Any], *, seconds: float = 20.0, every: float = 0.02
) -> Any:
    """Wait until `check` returns a true value, and return it; the limit only ends a test that would fail anyway."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"did not become true: {check}"
        await asyncio.sleep(every)


def client_of(parts: Parts, **arguments: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=make_application(parts), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", **arguments)


@contextlib.asynccontextmanager
async def looping(parts: Parts) -> AsyncIterator[None]:
    """Run the API's loops for the length of the block."""
    task = asyncio.create_task(run_loops(parts))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def emit(redis: Redis, *events: Event) -> None:
    """Send events as a service does."""
    for event in events:
        await redis.xadd(streams.EVENTS, {b"m": codec.encode(event)})


class FakeInstance:
    """A service instance as others see it: its heartbeat record. It lives until `vanish`."""

    def __init__(self, redis: Redis, kind: ServiceKind, instance: str, url: str = "http://127.0.0.1:9") -> None:
        self.redis = redis
        self.kind: ServiceKind = kind
        self.instance = instance
        self.url = url
        self.state: ServiceState = "idle"
        self.run_id: str | None = None
        self.weight_version: int | None = None
        self.waiting_for = ""
        self.waiting_since: float | None = None
        self.tokens_total = 0
        self.details: dict[str, str] = {}
        self.started_at = time.time()

    def record(self) -> ServiceRecord:
        return ServiceRecord(
            kind=self.kind,
            instance=self.instance,
            url=self.url,
            state=self.state,
            pid=1,
            started_at=self.started_at,
            at=time.time(),
            run_id=self.run_id,
            weight_version=self.weight_version,
            waiting_for=self.waiting_for,
            waiting_since=self.waiting_since,
            tokens_total=self.tokens_total,
            details=self.details,
        )

    async def publish(self) -> None:
        await self.redis.set(streams.service(self.instance), msgspec.json.encode(self.record()))

    async def vanish(self) -> None:
        await self.redis.delete(streams.service(self.instance))

    async def assignment(self) -> str | None:
        value = await self.redis.get(streams.assignment(self.instance))
        return value.decode() if value else None


class FakeRollout(FakeInstance):
    """A rollout server: a whole update in one call, and vLLM's weight-update routes with our server's refusals.

    `fail` scripts answers: the name of a call to a list of statuses, used in order.
    """

    def __init__(self, redis: Redis, instance: str) -> None:
        super().__init__(redis, "rollout", instance)
        self.phases: list[str] = []
        self.fail: dict[str, list[int]] = {}
        self.phase = "serving"
        self.checksum = "none"
        self.lie: str | None = None
        """A checksum to show in place of the true one."""
        self.loading: dict[str, Any] = {}
        self.tokens_seen: set[str] = set()
        self.finish_gate = asyncio.Event()
        self.finish_gate.set()
        self.app = FastAPI()
        self.app.post("/v1/engine/{phase}")(self._phase)
        self.app.get("/v1/engine/is_paused")(self._is_paused)
        self.app.get("/v1/weights")(self._weights)
        self.app.put("/v1/weights")(self._load)

    async def _phase(self, phase: str, request: Request, response: Response) -> dict[str, Any]:
        self.phases.append(phase)
        self.tokens_seen.add(request.headers.get("authorization", ""))
        body = await request.body()
        content = msgspec.json.decode(body) if body else {}
        statuses = self.fail.get(phase, [])
        status = statuses.pop(0) if statuses else 200
        if status == 200 and not self._allowed(phase):
            status = 409
        if status != 200:
            if status == 500 and phase != "pause" and phase != "resume":
                self.phase = "failed"
            response.status_code = status
            return {"error": "scripted"}
        await self._act(phase, content, dict(request.query_params))
        return {}

    async def _load(self, request: Request, response: Response) -> dict[str, Any]:
        self.tokens_seen.add(request.headers.get("authorization", ""))
        wanted = await request.json()
        if self.phase in ("open", "loaded"):
            response.status_code = 409
            return {}
        info = {name: wanted[name] for name in ("path", "checksum", "transfer") if name in wanted}
        content = {"update_info": info, "weight_version": str(wanted["version"])}
        for phase in LOAD[1:] if "transfer" in wanted else LOAD:
            self.phases.append(phase)
            status = (self.fail.get(phase) or [200]).pop(0)
            if status != 200:
                if status == 500 and phase not in ("prepare", "pause", "resume"):
                    self.phase = "failed"
                response.status_code = status
                return {"detail": f"scripted: {phase}"}
            if phase != "prepare":
                assert self._allowed(phase), (phase, self.phase)
                await self._act(phase, content, {"mode": "keep", "clear_cache": "false"})
        return await self._weights()

    def _allowed(self, call: str) -> bool:
        return {
            "pause": self.phase not in ("open", "loaded"),
            "start_weight_update": self.phase in ("paused", "failed"),
            "update_weights": self.phase == "open",
            "finish_weight_update": self.phase == "loaded",
            "resume": self.phase in ("paused", "serving"),
        }[call]

    async def _act(self, call: str, content: dict[str, Any], query: dict[str, str]) -> None:
        if call == "pause":
            assert query == {"mode": "keep", "clear_cache": "false"}
            self.phase = "failed" if self.phase == "failed" else "paused"
        elif call == "start_weight_update":
            self.phase = "open"
        elif call == "update_weights":
            self.loading, self.phase = content["update_info"], "loaded"
        elif call == "finish_weight_update":
            await self.finish_gate.wait()
            self.phase, self.checksum = "paused", self.loading["checksum"]
            self.weight_version = int(content.get("weight_version") or self.weight_version or 0)
            await self.publish()
        elif call == "resume":
            self.phase = "serving"

    async def _is_paused(self) -> dict[str, bool]:
        return {"is_paused": self.phase != "serving"}

    async def _weights(self) -> dict[str, Any]:
        return {"version": self.weight_version, "checksum": self.lie or self.checksum}


@contextlib.asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an application on a real port, and yield its URL."""
    listener = bind("127.0.0.1", 0)
    server = http_server(app)
    task = asyncio.create_task(server._serve(sockets=[listener]))
    try:
        await eventually(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task

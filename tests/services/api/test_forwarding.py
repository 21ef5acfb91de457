"""Requests in OpenAI's format find a rollout server that can answer. `tests/services/rollout/test_serving` asks real
engines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from starlette.responses import JSONResponse

from tests.services.api.fakes import FakeInstance, served

RUN = "asked-00000000"


def answering(status: int) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def answer() -> JSONResponse:
        return JSONResponse({"status": status}, status)

    return app


@pytest.fixture
async def ask(client: httpx.AsyncClient, redis: Redis) -> Callable[..., Awaitable[httpx.Response]]:
    """Ask a run whose rollout servers answer with these statuses, or not at all (0)."""

    async def asked(*statuses: int) -> httpx.Response:
        async with AsyncExitStack() as stack:
            for number, status in enumerate(statuses):
                server = FakeInstance(redis, "rollout", f"rollout-{number}")
                server.run_id, server.state = RUN, "ready"
                server.url = await stack.enter_async_context(served(answering(status))) if status else server.url
                await server.publish()
            return await client.post("/v1/chat/completions", json={"model": RUN, "messages": []})

    return asked


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ((429, 200), 200),
        ((503, 200), 200),  # its engine is replaced, which its record does not say yet
        ((0, 200), 200),
        ((400, 200), 400),
        ((429, 503), 503),
        ((200, 0), 200),
    ],
)
async def test_another_server_answers_if_the_first_cannot(
    ask: Callable[..., Awaitable[httpx.Response]], statuses: tuple[int, ...], expected: int
) -> None:
    answer = await ask(*statuses)
    assert (answer.status_code, answer.json()) == (expected, {"status": expected})


async def test_a_server_that_does_not_answer_is_named(ask: Callable[..., Awaitable[httpx.Response]]) -> None:
    answer = await ask(0)
    assert answer.status_code == 503
    assert "Rollout server rollout-0 does not answer" in answer.json()["error"]["message"]

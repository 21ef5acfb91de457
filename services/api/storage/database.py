"""The API's database: SQLite by default, PostgreSQL if `TURNOUT_DATABASE_URL` names one; migrated at start.

One API process owns the database (`writer_lock.py`). All its writes go through `Database.write`, one at a time: SQLite
has one writer anyway, and readers of the event stream rely on event ids that increase in the order in which they become
visible.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import Connection, MetaData, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from services.contracts.errors import ConfigurationError, UnavailableError
from services.runtime.settings import Settings

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
NETWORK = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""PostgreSQL's connection settings unless the URL has them: a dead network is noticed in 11 s instead of minutes."""


class Base(DeclarativeBase):
    """Base of all tables. Constraint names follow one rule, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Database:
    """Sessions for reading, and one at a time for writing."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        self._writing = asyncio.Lock()
        self._reading_piece = asyncio.Lock()
        self.version = 0
        """Increases with every write, and with other changes of what responses show, so that caches of them can tell
        that they may be stale."""

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session whose changes are discarded."""
        async with self._sessions() as session:
            yield session

    @asynccontextmanager
    async def read_piece(self) -> AsyncIterator[AsyncSession]:
        """A session for one piece of a large response. One at a time: however many such responses are in progress,
        other requests find connections and the processor free."""
        async with self._reading_piece, self.read() as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session that commits at the end, or rolls back if the block raises."""
        try:
            async with self._writing, self._sessions() as session, session.begin():
                yield session
        finally:
            self.version += 1

    async def close(self) -> None:
        await self.engine.dispose()


def database_url(settings: Settings) -> str:
    """SQLAlchemy's URL of the database, with the asynchronous driver filled in.

    Raises:
        ConfigurationError: the setting is not a URL of SQLite or PostgreSQL.
        UnavailableError: the folder of the SQLite file cannot be created.
    """
    if not settings.database_url:
        try:
            settings.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"The folder {settings.home} cannot be created: {error.strerror}.",
                remedy="Set TURNOUT_HOME to a writable folder.",
            ) from error
        path = str(settings.home / "turnout.db")
        return URL.create("sqlite+aiosqlite", database=path).render_as_string(hide_password=False)
    try:
        url = make_url(settings.database_url)
    except ArgumentError as error:
        raise _wrong_url() from error
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
    driver = drivers.get(url.drivername.split("+")[0])
    if driver is None:
        raise _wrong_url()
    return url.set(drivername=driver).render_as_string(hide_password=False)


def _wrong_url() -> ConfigurationError:
    # The value itself may contain a password, so it is not shown.
    return ConfigurationError(
        "TURNOUT_DATABASE_URL is not the URL of an SQLite or PostgreSQL database.",
        remedy="Write postgresql://user:password@host/name, or unset it for an SQLite file.",
        field="TURNOUT_DATABASE_URL",
    )


async def open_database(settings: Settings) -> Database:
    """Connect and bring the tables up to date.

    Raises:
        ConfigurationError: the URL is wrong.
        UnavailableError: the database does not answer or cannot be migrated.
    """
    url = database_url(settings)
    if url.startswith("sqlite"):
        engine = create_async_engine(url)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    else:
        given = make_url(url).query
        network = {name: value for name, value in NETWORK.items() if name not in given}
        engine = create_async_engine(url, pool_pre_ping=True, connect_args=network)
        event.listen(engine.sync_engine, "connect", _prepare_postgresql)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    except CommandError as error:
        await engine.dispose()
        raise UnavailableError(
            f"The database was created by a release that this one does not know: {error}.",
            remedy="Start that release, or set another TURNOUT_HOME or TURNOUT_DATABASE_URL for this one.",
        ) from error
    except (SQLAlchemyError, OSError) as error:
        await engine.dispose()
        raise UnavailableError(
            f"The database cannot be opened: {str(error).splitlines()[0]}.",
            remedy="Check TURNOUT_DATABASE_URL, and that TURNOUT_HOME is writable.",
        ) from error
    return Database(engine)


def migrate(connection: Connection, revision: str = "head") -> None:
    """Run the migrations up to `revision` on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


class ZeroShownDumper(StrDumperUnknown):
    """Sends U+2400, its symbol, for U+0000: models sample it, but PostgreSQL's text type cannot hold it."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\u2400"))


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    connection.driver_connection.adapters.register_dumper(str, ZeroShownDumper)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # WAL: readers and the writer do not block each other. FULL: a commit survives a power cut, which is required before
    # events are acknowledged on the stream.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()

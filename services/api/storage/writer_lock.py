"""One API process per database: the lock that the process holds from before the first migration until it ends.

SQLite: an OS lock on `<database>.lock`. PostgreSQL: a session advisory lock on a dedicated connection. Both are
released with their holder, however it ends, so a killed API can be replaced immediately. What the process keeps in
memory (keys, events, numbers) is valid only while no other process writes, so an API that has lost its lock exits.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import IO, Any, NoReturn

import psycopg
from sqlalchemy.engine import URL, make_url

from services.api.storage.database import NETWORK, database_url
from services.contracts.errors import ConflictError, UnavailableError
from services.runtime.files import lock
from services.runtime.logs import get_logger
from services.runtime.settings import Settings

log = get_logger(__name__)
WAIT_SECONDS = 5.0
"""How long to wait for a predecessor that is still shutting down."""
WATCH_SECONDS = 1.0
ADVISORY_KEY = int.from_bytes(b"turn", "big")
"""PostgreSQL's advisory locks are numbers, separate for each database."""
_SERVER_KEEP_ALIVE = "SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
"""The server frees a dead machine's lock after 30 s, later than the API notices (`NETWORK`), so two never assume that
they hold it."""
_HOLDER = """
    SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = %s AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Owner:
    """Owns an SQLite database while its lock file, if it has one, is open."""

    def __init__(self, lock: IO[str] | None = None) -> None:
        self._lock = lock

    async def lost(self) -> NoReturn:
        """Never returns: such a lock is only lost when the process ends."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()


class SessionOwner(Owner):
    """Owns a PostgreSQL database while its connection is alive."""

    def __init__(self, connection: psycopg.Connection[Any], arguments: dict[str, Any]) -> None:
        super().__init__()
        self._connection = connection
        self._arguments = arguments

    async def lost(self) -> NoReturn:
        """Raises once the connection is lost and the database answers again: until then a restarted process could not
        start either, and this one can at least say why.

        Raises:
            UnavailableError: another process may have written since.
        """
        while await asyncio.to_thread(_answers, self._connection):
            await asyncio.sleep(WATCH_SECONDS)
        log.error("database lock lost")
        while not await asyncio.to_thread(_can_connect, self._arguments):
            await asyncio.sleep(WATCH_SECONDS)
        raise UnavailableError(
            "The connection that held the database's lock was lost; another API may have written since.",
            remedy="This API exits. Start it again, unless its supervisor does.",
        )

    def close(self) -> None:
        self._connection.close()


def own_database(settings: Settings, wait_seconds: float = WAIT_SECONDS) -> Owner:
    """Make this process the database's only API; keep the returned owner for as long as the database is in use.

    Raises:
        ConfigurationError: the database's URL is wrong.
        ConflictError: another process already is; the message names it.
        UnavailableError: the database or its folder cannot be reached.
    """
    url = make_url(database_url(settings))
    name = f"{settings.instance_name('api')}, pid {os.getpid()} on {socket.gethostname()}"
    if url.get_backend_name() == "postgresql":
        return _own_session(url, name, wait_seconds)
    if url.database in (None, "", ":memory:"):
        return Owner()  # in memory, where no other process can reach it
    return _own_file(Path(str(url.database)).resolve(), name, wait_seconds)


def _own_file(database: Path, name: str, wait_seconds: float) -> Owner:
    path = database.with_name(f"{database.name}.lock")
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UnavailableError(
            f"The database's lock file {path} cannot be opened: {error.strerror}.",
            remedy="Check TURNOUT_DATABASE_URL, and that TURNOUT_HOME is writable.",
        ) from error
    if not lock(file, wait_seconds):
        with file:
            file.seek(0)
            raise _taken(str(database), file.read(500))
    file.truncate(0)
    file.write(name)
    file.flush()
    return Owner(file)


def _own_session(url: URL, name: str, wait_seconds: float) -> SessionOwner:
    _, given = url.get_dialect()().create_connect_args(url)
    arguments: dict[str, Any] = {**NETWORK, **given, "application_name": name[:63], "autocommit": True}
    try:
        connection = psycopg.connect(**arguments)
        connection.execute(_SERVER_KEEP_ALIVE)
        connection.execute(f"SET lock_timeout = {max(1, round(wait_seconds * 1000))}")
        try:
            connection.execute("SELECT pg_advisory_lock(%s)", [ADVISORY_KEY])
        except psycopg.errors.LockNotAvailable:
            holder = connection.execute(_HOLDER, [ADVISORY_KEY]).fetchone()
            connection.close()
            raise _taken(f"{url.database} at {url.host or 'this machine'}", holder[0] if holder else "") from None
    except psycopg.Error as error:
        raise UnavailableError(
            f"The database cannot be opened: {str(error).splitlines()[0]}.",
            remedy="Check TURNOUT_DATABASE_URL, and that the database server is running.",
        ) from error
    return SessionOwner(connection, arguments)


def _taken(database: str, holder: str) -> ConflictError:
    return ConflictError(
        f"Another API process is using the database {database}: {holder or 'its name is unknown'}.",
        remedy="Stop that process, or set another TURNOUT_HOME or TURNOUT_DATABASE_URL for this one.",
    )


def _answers(connection: psycopg.Connection[Any]) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def _can_connect(arguments: dict[str, Any]) -> bool:
    try:
        psycopg.connect(**arguments).close()
    except psycopg.Error:
        return False
    return True

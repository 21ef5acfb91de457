"""A run's events as text/event-stream: from the database until the client has caught up, then from memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import msgspec

from services.api.live.broadcaster import Broadcaster, Entry
from services.api.live.repeat import wait_at_most
from services.api.storage.database import Database
from services.api.storage.event_log import events_after

PAGE = 500
KEEP_ALIVE_SECONDS = 15.0


async def event_stream(
    database: Database,
    broadcaster: Broadcaster,
    run_id: str,
    last_id: int,
    follow: bool,
    revoked: Callable[[], bool] = lambda: False,
) -> AsyncIterator[str]:
    """Every entry after `last_id`, once and in order. With `follow`, further ones as they arrive, until the client
    disconnects, its key is `revoked` or the run is deleted.

    While there are no entries, a comment every 15 s shows that the connection is alive.
    """
    broadcaster.join(run_id)
    try:
        yield "retry: 1000\n\n"
        while not revoked() and not broadcaster.has_ended(run_id):
            news = broadcaster.news(run_id)  # before reading, so that no entry is missed
            entries = broadcaster.after(run_id, last_id)
            if entries is None:
                entries = await _read(database, run_id, last_id)
                if len(entries) < PAGE:
                    broadcaster.caught_up(run_id, entries[-1].id if entries else last_id)
            if entries:
                yield "".join(render(entry) for entry in entries)
                last_id = entries[-1].id
                continue
            if not follow:
                return
            if not await wait_at_most(news, KEEP_ALIVE_SECONDS):
                yield ": alive\n\n"
    finally:
        broadcaster.leave(run_id)


async def _read(database: Database, run_id: str, last_id: int) -> list[Entry]:
    async with database.read_piece() as session:
        rows = await events_after(session, run_id, last_id, PAGE)
    return [Entry(row.id, row.type, msgspec.json.encode(row.data).decode()) for row in rows]


def render(entry: Entry) -> str:
    """One entry in the format of server-sent events. JSON text holds no line breaks."""
    return f"id: {entry.id}\nevent: {entry.type}\ndata: {entry.data}\n\n"

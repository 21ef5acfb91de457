"""A run's samples as JSON, sent as fast as the client reads: a group has megabytes, and readers may be many and slow.

The rollouts are stored as JSON text and go out as they lie in the database, a piece at a time. Each piece is a read of
its own, so that a client that reads slowly holds neither a connection of the database nor a transaction open.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from services.api.storage import history
from services.api.storage.database import Database
from services.api.storage.history import SampleKey

PIECE_CHARACTERS = 128 << 10
MAX_CHARACTERS = 32 << 20
"""Of rollouts in one answer."""


class SamplesChangedError(Exception):
    """Part of an answer went out, and its group is no longer there: ends the connection, so that nobody takes it."""


async def sample_stream(database: Database, run_id: str, keys: Sequence[SampleKey]) -> AsyncIterator[bytes]:
    """The text of a `SampleList` with these groups; fewer if they are larger than `MAX_CHARACTERS` together, but one at
    least: a long group has megabytes."""
    yield b'{"items":['
    total = 0
    for key in keys:
        async with database.read_piece() as session:
            found = await history.sample_head(session, run_id, key)
        if found is None:
            raise SamplesChangedError
        head, length = found
        if total and total + length > MAX_CHARACTERS:
            break
        yield (b"," if total else b"") + msgspec.json.encode(head)[:-1] + b',"samples":'
        total += length
        for start in range(0, length, PIECE_CHARACTERS):
            async with database.read_piece() as session:
                piece = await history.sample_piece(session, run_id, key, start, PIECE_CHARACTERS)
            if not piece:
                raise SamplesChangedError
            yield piece.encode()
        yield b"}"
    yield b"]}"

"""Streams a run's samples as JSON at the client's pace: a group has megabytes, and there may be many slow readers.

The rollouts are stored as JSON text and sent unchanged, one piece at a time. Each piece is read separately, so that a
slow client keeps neither a database connection nor a transaction open.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from services.api.storage import history
from services.api.storage.database import Database
from services.api.storage.history import SampleKey

PIECE_CHARACTERS = 128 << 10
MAX_CHARACTERS = 32 << 20
"""Characters of rollouts in one response."""


class SamplesChangedError(Exception):
    """A group was replaced or deleted while it was being sent. Ends the connection, so that the client discards the
    response."""


async def sample_stream(database: Database, run_id: str, keys: Sequence[SampleKey]) -> AsyncIterator[bytes]:
    """The text of a `SampleList` with these groups; fewer if together they exceed `MAX_CHARACTERS`, but at least
    one."""
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

"""Streams a run's steps as JSON at the client's pace: a long run has ten thousand, with forty numbers each."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from sqlalchemy import RowMapping

from services.api.storage import history
from services.api.storage.database import Database

PAGE = 100
_TEXT_OR_NO_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|-?Infinity')


async def step_stream(database: Database, run_id: str, after: int, limit: int) -> AsyncIterator[bytes]:
    """The text of a `StepList`: up to `limit` steps above `after`."""
    yield b'{"items":['
    left, last = limit, after
    is_more = False
    while not is_more:
        async with database.read_piece() as session:
            rows = await history.steps_after(session, run_id, last, min(PAGE, left) + 1)
        shown = rows[: min(PAGE, left)]
        if shown:
            yield (b"," if left < limit else b"") + ",".join(map(_text, shown)).encode()
            left, last = left - len(shown), shown[-1]["step"]
        if len(rows) == len(shown):
            break
        is_more = not left
    yield f'],"next_after":{last if is_more else "null"}}}'.encode()


def _text(row: RowMapping) -> str:
    fields = (f'"{name}":{_finite(str(value))}' for name, value in row.items())
    return f"{{{','.join(fields)}}}"


def _finite(text: str) -> str:
    """The text with null in place of NaN and infinity, which Python writes but JSON does not have."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return _TEXT_OR_NO_NUMBER.sub(lambda match: match[0] if match[0][0] == '"' else "null", text)

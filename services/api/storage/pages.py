"""Pages of a listing. A cursor is the place after a page's last row, so rows that are added meanwhile move nothing."""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Select, and_, or_
from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts.errors import ConfigurationError

Row = TypeVar("Row")
NEWEST_FIRST = "-created_at"


async def newest_first(
    session: AsyncSession, query: Select[Any], table: type[Row], cursor: str | None, limit: int
) -> tuple[list[Row], str | None]:
    """One page of `query` on `table`, which has `created_at` and `id`, and the cursor of the next, or None at the end.
    Raises `ConfigurationError` for a cursor of another listing."""
    columns: Any = table
    if cursor:
        at, row_id = read_cursor(cursor, NEWEST_FIRST, float)
        query = query.where(or_(columns.created_at < at, and_(columns.created_at == at, columns.id < row_id)))
    query = query.order_by(columns.created_at.desc(), columns.id.desc()).limit(limit + 1)
    rows: list[Any] = list((await session.scalars(query)).all())
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], write_cursor(last.created_at, last.id, NEWEST_FIRST)


def write_cursor(value: float | int | str, row_id: str, sort: str) -> str:
    """The place of a row in the order `sort`, of which `value` is its key."""
    return base64.urlsafe_b64encode(msgspec.json.encode([sort, value, row_id])).decode().rstrip("=")


def read_cursor(cursor: str, sort: str, kind: type) -> tuple[Any, str]:
    """Key, of type `kind`, and id. Raises `ConfigurationError` unless the cursor was made for this order."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        made_for, value, row_id = msgspec.json.decode(raw, type=tuple[str, kind, str])  # type: ignore[valid-type]
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise _wrong_cursor() from error
    if made_for != sort:
        raise _wrong_cursor()
    return value, row_id


def _wrong_cursor() -> ConfigurationError:
    return ConfigurationError(
        "The cursor does not belong to this listing.",
        remedy="Pass next_cursor of the previous page, with the same sort.",
        field="cursor",
    )

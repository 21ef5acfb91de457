"""The API's keys: those from the environment, and those that users created."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Float, String, delete, select
from sqlalchemy.orm import Mapped, mapped_column

from services.api.storage.database import Base, Database
from services.contracts.errors import ConflictError, NotFoundError
from services.contracts.records import Key, NewKey, Role

BOOTSTRAP = "TURNOUT_API_KEY"
BOOTSTRAP_READ = "TURNOUT_READ_KEY"
MAX_KEYS = 1000


class ApiKey(Base):
    """One key. Times are Unix seconds. Revoking deletes the row."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """Also part of the key's text, so that users can tell which key they have."""
    name: Mapped[str] = mapped_column(String(100))
    role: Mapped[Role] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the key's text, hex. The text has 256 random bits, so a plain digest reveals nothing about it."""
    created_at: Mapped[float] = mapped_column(Float)


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated sender of a request."""

    id: str
    role: Role


class Keyring:
    """Knows every key by its digest. One API process owns the database, so the digests are kept in memory."""

    def __init__(self, database: Database, bootstrap: str, bootstrap_read: str = "") -> None:
        """`bootstrap`: the key from the environment; empty if the API requires no key. `bootstrap_read`: another one,
        with the role read."""
        self.database = database
        given: list[tuple[str, Caller]] = [
            (_digest(bootstrap_read.encode()), Caller(BOOTSTRAP_READ, "read")),
            (_digest(bootstrap.encode()), Caller(BOOTSTRAP, "operate")),
        ]
        self._bootstrap = [pair for pair, key in zip(given, (bootstrap_read, bootstrap), strict=True) if key]
        self._is_required = bool(bootstrap)
        self._made: list[tuple[str, Caller]] | None = None
        self._num_changes = 0
        self._revoked: set[str] = set()

    @property
    def required(self) -> bool:
        """Whether callers must send a key."""
        return self._is_required

    async def find(self, key: bytes) -> Caller | None:
        """The caller whose key this is, if any. Raises SQLAlchemy's errors if the database is unavailable at the first
        call.

        Compares all digests, in constant time, so that timing reveals neither a key's length nor its first wrong
        character.
        """
        seen = _digest(key)
        made = self._made if self._made is not None else await self._read()
        matches = [caller for digest, caller in (*self._bootstrap, *made) if hmac.compare_digest(digest, seen)]
        return matches[0] if matches else None

    async def _read(self) -> list[tuple[str, Caller]]:
        """Read the digests, and keep them unless a key was created or revoked in the meantime, which they may lack."""
        while True:
            before = self._num_changes
            made = [(row.digest, Caller(row.id, row.role)) for row in await self.rows()]
            if before == self._num_changes:
                self._made = made
                return made

    def _changed(self) -> None:
        self._made = None
        self._num_changes += 1

    async def list(self) -> list[Key]:
        """Every key that users created, oldest first."""
        return [Key(id=row.id, name=row.name, role=row.role, created_at=row.created_at) for row in await self.rows()]

    async def rows(self) -> Sequence[ApiKey]:
        """The table, oldest first."""
        async with self.database.read() as session:
            return (await session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))).all()

    async def create(self, name: str, role: Role) -> NewKey:
        """Create a key. Its text is not stored.

        Raises:
            ConflictError: authentication is disabled, or there are `MAX_KEYS` keys.
        """
        if not self.required:
            raise ConflictError(
                "Authentication is disabled, so keys have no effect.",
                remedy="Set TURNOUT_API_KEY, which enables authentication, and restart the API.",
            )
        if len(await self.rows()) >= MAX_KEYS:
            raise ConflictError(f"There are {MAX_KEYS} keys already.", remedy="Revoke those that are not in use.")
        key_id = secrets.token_hex(4)
        text = f"turnout_{key_id}_{secrets.token_urlsafe(32)}"
        key = NewKey(id=key_id, name=name, role=role, created_at=time.time(), key=text)
        async with self.database.write() as session:
            session.add(
                ApiKey(id=key_id, name=name, role=role, digest=_digest(text.encode()), created_at=key.created_at)
            )
        self._changed()
        return key

    async def revoke(self, key_id: str) -> None:
        """Revoke a key, effective from the next request. Raises `NotFoundError`."""
        async with self.database.write() as session:
            result = await session.execute(delete(ApiKey).where(ApiKey.id == key_id).returning(ApiKey.id))
            if result.scalar_one_or_none() is None:
                raise NotFoundError(
                    f"There is no key {key_id!r}.", remedy="GET /v1/keys lists the keys.", field="key_id"
                )
        self._revoked.add(key_id)
        self._changed()

    def is_revoked(self, caller: Caller | None) -> bool:
        """Whether the caller's key has been revoked since its request; for long-running responses."""
        return caller is not None and caller.id in self._revoked


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()

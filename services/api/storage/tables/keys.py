"""Table of API keys: their digests, never their text."""

from __future__ import annotations

from sqlalchemy import Float, String
from sqlalchemy.orm import Mapped, mapped_column

from services.api.storage.database import Base


class ApiKey(Base):
    """One key. Times are Unix seconds. Revoking deletes the row."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """Also the start of the key's text, so that people can tell which key they hold."""
    name: Mapped[str] = mapped_column(String(100))
    role: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the key's text, hex. The text has 256 random bits, so a plain digest tells nothing of it."""
    created_at: Mapped[float] = mapped_column(Float)

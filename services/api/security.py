"""Who may call: everyone on loopback without a key; with a key set, only those who send it."""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from services.api.problems import problem
from services.contracts.errors import ConfigurationError
from services.runtime.settings import LOOPBACK, Settings

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Answer without the key, for whoever restarts or routes to the service. They tell nothing of runs."""
MAX_BODY_BYTES = 1 << 20


def check_exposure(settings: Settings) -> None:
    """Raise `ConfigurationError` where the API would listen for other machines without a key."""
    if settings.host not in LOOPBACK and not settings.api_key:
        raise ConfigurationError(
            f"TURNOUT_HOST is {settings.host}, which other machines can reach, but TURNOUT_API_KEY is not set.",
            remedy="Set TURNOUT_API_KEY to a long random text, or listen on 127.0.0.1.",
            field="TURNOUT_API_KEY",
        )


class Guard:
    """Middleware: refuses requests without the key, and bodies that are too large."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app = app
        self._digest = hashlib.sha256(api_key.encode()).digest() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if scope["path"] not in OPEN_PATHS and not self._allowed(headers.get(b"authorization", b"")):
            answer = problem(
                401, "Unauthorized", "This API needs its key.", remedy="Send it as Authorization: Bearer <key>."
            )
            await answer(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        chunked = b"transfer-encoding" in headers
        if chunked or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            answer = problem(
                413, "Content too large", f"Bodies are limited to {MAX_BODY_BYTES} bytes, their length given."
            )
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allowed(self, header: bytes) -> bool:
        if self._digest is None:
            return True
        scheme, _, key = header.partition(b" ")
        # Digests are compared, so that neither the key's length nor its first wrong letter shows in the time.
        right = hmac.compare_digest(hashlib.sha256(key.strip()).digest(), self._digest)
        return right and scheme.lower() == b"bearer"

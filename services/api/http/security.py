"""Who may call what, how often, and with how much: everything that is decided before a route sees the request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.http.limiter import RateLimiter, UnderWay
from services.api.page.serve import is_page
from services.api.storage.keyring import Caller, Keyring
from services.contracts.errors import ConfigurationError
from services.runtime.http.problem import problem
from services.runtime.http.server import max_connections
from services.runtime.logs import get_logger
from services.runtime.settings import LOOPBACK, Settings

log = get_logger(__name__)
HEALTH_PATHS = frozenset({"/healthz", "/readyz"})
"""Answer everyone, for whoever restarts or routes to the service. They tell nothing of runs."""
REFERENCE_PATHS = ("/docs", "/openapi.json")
"""Need no key either: what this release can do is no secret, and a browser could not send one for them."""
KEYS_PATH = "/v1/keys"
READING = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_BODY_BYTES = 1 << 20
BYTES_PER_REQUEST = 16 << 10
"""A body counts as one request more for each of these: reading it is what costs."""
STREAM_PATH = re.compile(r"/v1/runs/[^/]+/events")
MAX_STREAMS_PER_CLIENT = 256
MAX_STREAMS = 1024
MAX_REQUESTS_PER_CLIENT = 64
MAX_REQUESTS = 512
"""Under way at once, event streams aside: clients that read slowly hold memory meanwhile."""
MIN_KEY_LENGTH = 16
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer that does not bring its own: nothing of it may be framed, guessed at or linked from elsewhere."""
Headers = Mapping[bytes, bytes]


def check_exposure(settings: Settings) -> None:
    """Raise `ConfigurationError` where the API would listen for other machines without a key, or with one that can be
    guessed."""
    if settings.host in LOOPBACK:
        return
    problem = "is not set" if not settings.api_key else f"has fewer than {MIN_KEY_LENGTH} characters"
    if len(settings.api_key) < MIN_KEY_LENGTH:
        raise ConfigurationError(
            f"TURNOUT_HOST is {settings.host}, which other machines can reach, but TURNOUT_API_KEY {problem}.",
            remedy="Set TURNOUT_API_KEY to a long random text, or listen on 127.0.0.1.",
            field="TURNOUT_API_KEY",
        )
    if 0 < len(settings.read_key) < MIN_KEY_LENGTH:
        raise ConfigurationError(
            f"TURNOUT_READ_KEY has fewer than {MIN_KEY_LENGTH} characters.",
            remedy="Set it to a long random text, or unset it.",
            field="TURNOUT_READ_KEY",
        )


class StrictHeaders:
    """Middleware: `HEADERS` on every answer that lacks them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = [header for header in self._headers if header[0] not in present]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class Guard:
    """Middleware: refuses requests of strangers, of the wrong role, that come too often or are too many at once, and
    bodies too large.

    With a key set, the key decides. Without one the API listens on loopback, and whoever uses this machine may do
    everything; but a web page of somebody else's, opened in a browser here, may not: see `_refuse_other_sites`.
    """

    def __init__(self, app: ASGIApp, keys: Keyring, limiter: RateLimiter) -> None:
        self.app = app
        self.keys = keys
        self.limiter = limiter
        self.streams = UnderWay(MAX_STREAMS_PER_CLIENT, min(MAX_STREAMS, max_connections() // 2))
        self.requests = UnderWay(MAX_REQUESTS_PER_CLIENT, MAX_REQUESTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in HEALTH_PATHS:
            await self.app(scope, receive, send)
            return
        headers: Headers = dict(scope["headers"])
        address = f"address {scope['client'][0] if scope.get('client') else 'unknown'}"
        refusal = await self._refusal(scope, headers, address)
        caller: Caller | None = scope.get("state", {}).get("caller")
        client = address if caller is None else f"key {caller.id}"
        is_stream = STREAM_PATH.fullmatch(scope["path"]) is not None
        under_way = self.streams if is_stream else self.requests
        refusal = refusal or _refuse_large_bodies(headers) or _refuse_crowd(under_way, client, is_stream)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        under_way.enter(client)
        try:
            await self.app(scope, receive, send)
        finally:
            under_way.leave(client)

    async def _refusal(self, scope: Scope, headers: Headers, address: str) -> JSONResponse | None:
        """Decide by key, role, site and haste; leaves the key's owner in the request's state."""
        path, method = scope["path"], scope["method"]
        cost = 1 + _body_length(headers) // BYTES_PER_REQUEST
        if path in REFERENCE_PATHS or path.startswith("/docs/") or is_page(path):
            return self._refuse_haste(address, cost)
        if not self.keys.required:
            return _refuse_other_sites(method, headers) or self._refuse_haste(address, cost)
        try:
            caller = await self._caller(headers)
        except SQLAlchemyError as error:
            log.error("keys cannot be read", error=type(error).__name__)
            return problem(503, "Unavailable", "The database does not answer.", remedy="Try again; see the API's log.")
        if caller is None:
            sent = "The key is wrong or was revoked." if headers.get(b"authorization") else "This API needs a key."
            return self._refuse_haste(address, cost) or problem(
                401, "Unauthorized", sent, remedy="Send one as Authorization: Bearer <key>."
            )
        scope.setdefault("state", {})["caller"] = caller
        return self._refuse_haste(f"key {caller.id}", cost) or _refuse_role(caller, method, path)

    async def _caller(self, headers: Headers) -> Caller | None:
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        return await self.keys.find(key.strip()) if scheme.lower() == b"bearer" else None

    def _refuse_haste(self, client: str, cost: int) -> JSONResponse | None:
        seconds = self.limiter.wait_seconds(client, cost)
        if seconds is None:
            return None
        answer = problem(
            429,
            "Too many requests",
            "This client calls too often.",
            remedy=f"Wait {seconds} s. Follow /events, not polls.",
        )
        answer.headers["Retry-After"] = str(seconds)
        return answer


def _refuse_role(caller: Caller, method: str, path: str) -> JSONResponse | None:
    of_keys = path == KEYS_PATH or path.startswith(KEYS_PATH + "/")
    if caller.role == "operate" or (method in READING and not of_keys):
        return None
    return problem(
        403,
        "Forbidden",
        "This key has the role read: it may look at runs, but change nothing.",
        remedy="Use a key with the role operate.",
    )


def _refuse_other_sites(method: str, headers: Headers) -> JSONResponse | None:
    """Without a key a browser on this machine is trusted, the sites that it shows are not: a name of theirs that leads
    to 127.0.0.1 (DNS rebinding) shows in `Host`, a form or script of theirs in `Origin`."""
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin", b"").decode("latin-1")
    foreign_host = bool(host) and _host(f"//{host}") not in LOOPBACK
    foreign_origin = bool(origin) and method not in READING and _authority(origin) != host
    if not foreign_host and not foreign_origin:
        return None
    return problem(
        403,
        "Forbidden",
        "Without a key this API answers only its own machine, under its own address.",
        remedy="Call http://127.0.0.1:<port>, or set TURNOUT_API_KEY to serve others.",
    )


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _authority(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _body_length(headers: Headers) -> int:
    """Bytes of the body, as far as they are to be believed: a length that is none is refused later."""
    length = headers.get(b"content-length", b"0")
    return min(int(length), MAX_BODY_BYTES) if length.isdigit() and len(length) < 20 else 0


def _refuse_large_bodies(headers: Headers) -> JSONResponse | None:
    length = headers.get(b"content-length", b"0")
    fits = length.isdigit() and len(length) < 20 and int(length) <= MAX_BODY_BYTES
    if b"transfer-encoding" not in headers and fits:
        return None
    return problem(413, "Content too large", f"Bodies are limited to {MAX_BODY_BYTES} bytes, their length given.")


def _refuse_crowd(under_way: UnderWay, client: str, is_stream: bool) -> JSONResponse | None:
    what = "event streams" if is_stream else "requests under way"
    if under_way.is_full_for(client):
        text = f"This client has {under_way.per_client} {what} already."
        answer = problem(429, "Too many requests", text, remedy="Close some, or wait until they have ended.")
    elif under_way.is_full:
        text = f"The API has {under_way.in_all} {what} already."
        answer = problem(503, "Unavailable", text, remedy="Try again when others have ended.")
    else:
        return None
    answer.headers["Retry-After"] = "5"
    return answer

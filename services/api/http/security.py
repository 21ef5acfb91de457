"""Keys, roles, rate and size limits: everything that is decided before a route sees the request."""

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
"""Open to everyone, for supervisors and load balancers. They reveal nothing about runs."""
REFERENCE_PATHS = ("/docs", "/openapi.json")
"""Need no key either: what a release can do is no secret, and a browser could not send one for these paths."""
KEYS_PATH = "/v1/keys"
ROLE_PATH = "/v1/role"
"""Every key may ask what its role is."""
SERVING_PATH = re.compile(r"/v1/(chat/completions|completions|models(/.+)?)")
"""What the role `use` may call: OpenAI's API to the policies."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_BODY_BYTES = 1 << 20
BYTES_PER_REQUEST = 16 << 10
"""A body counts as one more request per this many bytes, because reading it is what costs."""
STREAM_PATH = re.compile(r"/v1/runs/[^/]+/events")
MAX_STREAMS_PER_CLIENT = 256
MAX_STREAMS = 1024
MAX_REQUESTS_PER_CLIENT = 64
MAX_REQUESTS = 512
"""In progress at once, not counting event streams: a response that is read slowly holds memory."""
MIN_KEY_LENGTH = 16
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Added to every response that does not set its own: no framing, no type guessing, no use by other sites."""
Headers = Mapping[bytes, bytes]


def check_exposure(settings: Settings) -> None:
    """Raise `ConfigurationError` if other machines could reach the API and it has no key, or one that can be
    guessed."""
    if settings.host in LOOPBACK:
        return
    problem = "is not set" if not settings.api_key else f"has fewer than {MIN_KEY_LENGTH} characters"
    if len(settings.api_key) < MIN_KEY_LENGTH:
        raise ConfigurationError(
            f"TURNOUT_HOST is {settings.host}, which other machines can reach, but TURNOUT_API_KEY {problem}.",
            remedy="Set TURNOUT_API_KEY to a long random string, or listen on 127.0.0.1.",
            field="TURNOUT_API_KEY",
        )
    if 0 < len(settings.read_key) < MIN_KEY_LENGTH:
        raise ConfigurationError(
            f"TURNOUT_READ_KEY has fewer than {MIN_KEY_LENGTH} characters.",
            remedy="Set it to a long random string, or unset it.",
            field="TURNOUT_READ_KEY",
        )


class StrictHeaders:
    """Middleware that adds `HEADERS` to every response that lacks them."""

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
    """Middleware that rejects requests without a valid key or role, above the rate or concurrency limits, or with too
    large a body.

    If a key is set, it decides. Without one the API listens on loopback only, and every user of this machine may do
    everything. A foreign web page in a browser on this machine may not: see `_refuse_other_sites`.
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
        """The response that rejects the request by key, role, site or rate, if any. Stores the caller in the request's
        state."""
        path, method = scope["path"], scope["method"]
        cost = 1 + _body_length(headers) // BYTES_PER_REQUEST
        if path in REFERENCE_PATHS or path.startswith("/docs/") or is_page(path):
            return self._refuse_haste(address, cost)
        if not self.keys.required:
            return _refuse_other_sites(method, headers) or self._refuse_haste(address, cost)
        try:
            caller = await self._caller(headers)
        except SQLAlchemyError as error:
            log.error("keys unreadable", error=type(error).__name__)
            return problem(503, "Unavailable", "The database does not answer.", remedy="Try again; see the API's log.")
        if caller is None:
            sent = "The key is wrong or was revoked." if headers.get(b"authorization") else "This API requires a key."
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
            "This client sends too many requests.",
            remedy=f"Wait {seconds} s, and follow /events instead of polling.",
        )
        answer.headers["Retry-After"] = str(seconds)
        return answer


def _refuse_role(caller: Caller, method: str, path: str) -> JSONResponse | None:
    if caller.role == "operate" or (path == ROLE_PATH and method in READING):
        return None
    is_serving = SERVING_PATH.fullmatch(path) is not None
    if caller.role == "use":
        is_allowed = is_serving
        text = "This key has the role use, which may ask the policies of runs but nothing else."
    else:
        is_allowed = method in READING and path != KEYS_PATH and not path.startswith(KEYS_PATH + "/")
        text = "This key has the role read, which may view runs but not change anything."
    if is_allowed:
        return None
    remedy = "Use a key with the role operate" + (", or use." if is_serving else ".")
    return problem(403, "Forbidden", text, remedy=remedy)


def _refuse_other_sites(method: str, headers: Headers) -> JSONResponse | None:
    """Reject other sites if no key is set: a browser on this machine is trusted, but the sites that it shows are not. A
    foreign name that resolves to 127.0.0.1 (DNS rebinding) shows in `Host`, a foreign form or script in `Origin`."""
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin", b"").decode("latin-1")
    foreign_host = bool(host) and _host(f"//{host}") not in LOOPBACK
    foreign_origin = bool(origin) and method not in READING and _authority(origin) != host
    if not foreign_host and not foreign_origin:
        return None
    return problem(
        403,
        "Forbidden",
        "Without a key, this API answers only requests from its own machine to its own address.",
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
    """Bytes of the body according to its header, up to the limit; 0 for an invalid length, which is rejected later."""
    length = headers.get(b"content-length", b"0")
    return min(int(length), MAX_BODY_BYTES) if length.isdigit() and len(length) < 20 else 0


def _refuse_large_bodies(headers: Headers) -> JSONResponse | None:
    length = headers.get(b"content-length", b"0")
    fits = length.isdigit() and len(length) < 20 and int(length) <= MAX_BODY_BYTES
    if b"transfer-encoding" not in headers and fits:
        return None
    return problem(413, "Content too large", f"The body needs a Content-Length of at most {MAX_BODY_BYTES} bytes.")


def _refuse_crowd(under_way: UnderWay, client: str, is_stream: bool) -> JSONResponse | None:
    what = "event streams" if is_stream else "requests in progress"
    if under_way.is_full_for(client):
        text = f"This client already has {under_way.per_client} {what}."
        answer = problem(429, "Too many requests", text, remedy="Close some, or wait for them to finish.")
    elif under_way.is_full:
        text = f"The API already has {under_way.in_all} {what}."
        answer = problem(503, "Unavailable", text, remedy="Try again once others have ended.")
    else:
        return None
    answer.headers["Retry-After"] = "5"
    return answer

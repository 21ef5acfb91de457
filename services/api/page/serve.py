"""Serves the page at `/` and its files under `/page/`.

The guard lets everyone load it: the page contains no run data, and must load before it can ask for the key. Every
response has strict headers. All data that the page shows comes from `/v1`, with the key.
"""

from __future__ import annotations

import asyncio

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.api.page.assets import ROOT, Asset, find_asset, shell

HEADERS = {
    # plotly.js writes style elements and attributes, hence 'unsafe-inline' for styles; scripts come only from here.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
KEEP = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"


class Page:
    """Middleware that serves the page's paths and passes on all others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not is_page(path) or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        accepted = dict(scope["headers"]).get(b"accept-encoding", b"")
        await (await _answer(path, b"gzip" in accepted))(scope, receive, send)


def is_page(path: str) -> bool:
    """Whether this is the page, or one of its files."""
    return path == "/" or path.startswith(ROOT + "/")


async def _answer(path: str, gzipped: bool) -> Response:
    if path == "/":
        return _send(shell(), gzipped, ASK_AGAIN)
    asset = await asyncio.to_thread(find_asset, path)
    if asset is None:
        return PlainTextResponse("No such file. Reload the page.\n", 404, HEADERS)
    return _send(asset, gzipped, KEEP)


def _send(asset: Asset, gzipped: bool, caching: str) -> Response:
    headers = {**HEADERS, "Cache-Control": caching, "Vary": "Accept-Encoding"}
    if gzipped:
        headers["Content-Encoding"] = "gzip"
    return Response(asset.compressed if gzipped else asset.body, 200, headers, asset.media_type)

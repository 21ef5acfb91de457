"""The HTTP server of every service: uvicorn with bounds on what a connection may cost before and after a route runs.

uvicorn's parser accepts heads of any size, and its only timeout is that of an idle connection between requests. Here a
request must arrive completely within `REQUEST_SECONDS`, its head is bounded, and a client that does not read its
response is disconnected. Connections are limited to fewer than the process's descriptors: if they run out, the
connection that has kept us waiting longest for a request is closed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
from http import HTTPStatus
from typing import Any, ClassVar

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 32 << 10
MAX_HEADERS = 100
REQUEST_SECONDS = 15.0
"""Limit from a connection's start, or a request's first byte, to the request's last byte."""
IDLE_SECONDS = 75
"""How long a connection stays open between two requests: longer than clients and proxies keep one (httpx 5 s, aiohttp
15 s, load balancers 60 s). The client must close first, or a request that it sends at that moment is lost."""
WRITE_SECONDS = 20.0
MIN_WRITTEN_BYTES = 16 << 10
"""A client that reads less of its response than this in `WRITE_SECONDS`, while we wait for it, is disconnected."""
RESERVED_DESCRIPTORS = 128
"""Descriptors reserved for the database, the queue server, other services, logs and files."""
MAX_CONNECTIONS = 4096
_TOO_LARGE = f"The head of a request is limited to {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers."
_TOO_SLOW = f"The request did not arrive within {REQUEST_SECONDS:.0f} s."


def raise_descriptor_limit() -> int:
    """Raise the limit of open files and connections to what the system allows. Returns the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def max_connections() -> int:
    """Number of connections that may be open at once, given the process's descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    known = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft - RESERVED_DESCRIPTORS
    return max(16, min(MAX_CONNECTIONS, known))


def http_server(app: ASGIApp) -> uvicorn.Server:
    """A server for `app` that does not handle signals.

    X-Forwarded-For counts only from the proxies in FORWARDED_ALLOW_IPS. By uvicorn's default, any process on this
    machine could claim any address.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings only repeat what strangers send
    config = uvicorn.Config(
        app,
        http=type("Protocol", (BoundedProtocol,), {"waiting": {}}),
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=IDLE_SECONDS,
        forwarded_allow_ips=os.environ.get("FORWARDED_ALLOW_IPS", ""),
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    return server


class HeadTooLargeError(Exception):
    """Stops the parser."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Consumes bytes; closes itself at a timeout, or if another connection needs its place."""

    waiting: ClassVar[dict[BoundedProtocol, None]]
    """The server's connections with an incomplete request, longest waiting first."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        self._unwritten = 0
        self._in_head = True
        self._head_bytes = 0
        self._is_large = False
        self._has_begun = False
        """Whether a request has arrived partially."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > max_connections():
            if not self.waiting:
                self._refuse(503, "All connections of this service are in use.")
                return
            next(iter(self.waiting)).cut_off()
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self.is_idle:
            self._await_request()
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and self.parser is not None:
            self._refuse(431, _TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for bytes that its parser rejects, or was stopped at."""
        if self._is_large:
            self._refuse(431, _TOO_LARGE)
        else:
            self._refuse(400, msg)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_begun, self._in_head, self._head_bytes = True, True, 0
        if self._deadline is None:
            self._await_request()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._check_head(len(self.url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._check_head(len(name) + len(value))
        super().on_header(name, value)  # trailers too: they count with the headers

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._check_head(len(self.url) + sum(len(name) + len(value) for name, value in self.headers))
        super().on_headers_complete()

    def _check_head(self, num_bytes: int) -> None:
        """Stop the parser if the head is too large, however many pieces it arrives in."""
        if num_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._is_large = True
            raise HeadTooLargeError

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._has_begun = False
        self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.is_idle:
            self.waiting[self] = None  # idle connections are closed first; uvicorn times them out

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unwritten = self.transport.get_write_buffer_size()
        self._write_deadline = self.loop.call_later(WRITE_SECONDS, self._check_reader)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    @property
    def is_idle(self) -> bool:
        """Whether every request that has begun is answered."""
        return self.cycle is None or self.cycle.response_complete

    def cut_off(self) -> None:
        """Close the connection immediately."""
        self._stop_waiting()
        self.transport.abort()

    def _await_request(self) -> None:
        self.waiting.pop(self, None)
        self.waiting[self] = None
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._too_slow)

    def _stop_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.pipeline or not (self.is_idle or self.cycle.more_body):
            self._await_request()  # an earlier request is still being answered, and this one is not read meanwhile
        elif self._has_begun and (self._in_head or not self.cycle.response_started):
            self._refuse(408, _TOO_SLOW)
        elif self.is_idle:
            self.transport.close()  # no request, or one that is answered although the rest of its body never arrived
        else:
            self.cut_off()

    def _check_reader(self) -> None:
        """The write timeout: the client stays connected if it has read part of its response."""
        left = self.transport.get_write_buffer_size()
        if left > self._unwritten - MIN_WRITTEN_BYTES:
            self.cut_off()
            return
        self._unwritten = left
        self._write_deadline = self.loop.call_later(WRITE_SECONDS, self._check_reader)

    def _refuse(self, status: int, detail: str) -> None:
        """Respond with a problem document and close, or only close if a response is already being sent."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            phrase = HTTPStatus(status).phrase
            body = json.dumps({"type": "about:blank", "title": phrase, "status": status, "detail": detail})
            self.transport.write(
                f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
            )
        self.transport.close()

"""The service process: connects, serves HTTP, runs loops, and stops cleanly on SIGTERM or SIGINT.

Each service is a package of the same form: `__main__.py` calls `run_service` with the loops of `service.py`, which run
until cancelled; `settings.py` and `metrics.py` contain the service's own settings and metrics, if it has any.

    async def loops(service: Service) -> None: ...
    run_service("verifier", loops)

A loop that raises ends the process with exit code 1 after one clear log line; a supervisor may restart it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import uvloop
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError

from services.contracts.errors import BAD_URL, ConfigurationError, TurnoutError, UnavailableError, without_password
from services.contracts.heartbeat import ServiceKind
from services.runtime import secret_files
from services.runtime.address import authority, listen_on, url_of
from services.runtime.connection import connect
from services.runtime.http.access import is_service, unauthorized
from services.runtime.http.problem import problem
from services.runtime.http.server import http_server, raise_descriptor_limit
from services.runtime.logs import configure_logs, get_logger
from services.runtime.presence import Presence
from services.runtime.settings import Settings, load_settings
from services.runtime.traces import configure_traces, flush_traces

log = get_logger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class Service:
    """The parts that every service has."""

    settings: Settings
    redis: Redis
    presence: Presence
    app: FastAPI
    """The application with /healthz, /readyz and /metrics. A service may add routes before its loops await anything."""


def run_service(
    kind: ServiceKind, loops: Callable[[Service], Awaitable[None]], check: Callable[[Settings], None] | None = None
) -> None:
    """Run one service until a signal or a fault, then exit the process.

    Args:
        loops: the service's work, until cancelled.
        check: raises `TurnoutError` if a precondition for announcing the service is not met.
    """
    os.umask(0o077)  # only this user may read weights, checkpoints and databases
    try:
        settings = _settings(kind, check)
    except TurnoutError as error:
        print(f"turnout {kind}: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        # The API serves many connections, for which uvloop needs a third less; the other services' loops cost little.
        loop = uvloop.new_event_loop() if kind == "api" else asyncio.new_event_loop()
        code = loop.run_until_complete(_run(kind, settings, loops))
    except TurnoutError as error:
        print(f"turnout {kind}: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    flush_traces()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # a thread that is still importing or computing must not delay the exit


def _settings(kind: ServiceKind, check: Callable[[Settings], None] | None) -> Settings:
    """Load and check the settings from the environment, and configure logs and traces."""
    settings = load_settings()
    if not settings.service_token:
        settings.service_token = secret_files.read(settings.home, secret_files.SERVICE_TOKEN)
    if check is not None:
        check(settings)
    configure_logs(settings, kind)
    configure_traces(kind, settings.instance_name(kind))
    if kind == "api":
        raise_descriptor_limit()
    return settings


async def _run(kind: ServiceKind, settings: Settings, loops: Callable[[Service], Awaitable[None]]) -> int:
    await check_redis(settings.redis_url)
    redis = connect(settings.redis_url)
    listener = bind(settings.host, settings.port)
    port = listener.getsockname()[1]
    url = settings.advertise_url or url_of(settings.host, port)
    presence = Presence(redis, kind, settings.instance_name(kind), url)
    await announce(presence)
    service = Service(settings, redis, presence, make_app(presence, settings))
    server = http_server(service.app)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work = asyncio.ensure_future(loops(service))
    tasks = [
        work,
        asyncio.create_task(server._serve(sockets=[listener])),
        asyncio.create_task(presence.beat()),
        asyncio.create_task(stop.wait()),
    ]
    log.info("service started", url=url, pid=os.getpid())
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    for task in tasks:
        if task.done() and not task.cancelled() and task.exception() is not None:
            log.error("service failed", error=str(task.exception()), exc_info=task.exception())
            code = 1
    server.should_exit = True
    await end([tasks[0], tasks[2], tasks[3]], seconds=10)
    await asyncio.wait([tasks[1]], timeout=3)
    await redis.aclose()
    log.info("service stopped")
    return code


async def end(tasks: Sequence[asyncio.Future[Any]], seconds: float = math.inf) -> None:
    """Cancel tasks and wait for their end, up to a limit.

    Cancels again until they end: on Python 3.11 a cancellation that meets a finishing `asyncio.wait_for` is lost, and
    Redis reads are full of them.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (pending := [task for task in tasks if not task.done()]):
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.5)


def end_if_cancelled() -> None:
    """Raise `CancelledError` if this task was cancelled but its last call swallowed the cancellation.

    `asyncio.wait_for` of Python 3.11, which libraries use, can do so when its result arrives at the same moment.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def check_redis(url: str) -> None:
    """Raise `UnavailableError` with a remedy if the queue server does not answer."""
    try:
        async with Redis.from_url(url, retry=Retry(NoBackoff(), retries=1), socket_connect_timeout=3) as redis:
            await redis.ping()
    except (RedisError, OSError, ValueError) as error:
        reason = BAD_URL if isinstance(error, ValueError) else str(error).rstrip(".")
        raise UnavailableError(
            f"No Redis or Valkey server answers at {without_password(url)}: {reason}.",
            remedy="Start one (`turnout up` starts its own), or set TURNOUT_REDIS_URL.",
        ) from error


async def announce(presence: Presence) -> None:
    """Send the first heartbeat. Raises `ConfigurationError` if the queue server's user may not write it; other faults
    are left to the next heartbeat."""
    try:
        await presence.publish()
    except NoPermissionError as error:
        raise ConfigurationError(
            f"The queue server refuses the heartbeat of {presence.instance}: {error}.",
            remedy=f"Use the user {presence.kind} in TURNOUT_REDIS_URL, and let TURNOUT_INSTANCE begin with that word.",
            field="TURNOUT_INSTANCE",
        ) from error
    except RedisError as error:
        log.warning("heartbeat failed", error=str(error))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `UnavailableError` if the port is in use."""
    try:
        listener = listen_on(host, port)
        listener.listen(1024)
    except OSError as error:
        raise UnavailableError(
            f"Cannot listen on {authority(host, port)}: {error.strerror}.",
            remedy="Choose another port, or stop the process that uses it. TURNOUT_HOST must be a local address.",
        ) from error
    listener.setblocking(False)
    return listener


def make_app(presence: Presence, settings: Settings) -> FastAPI:
    """The HTTP application that every service has. Without the token it tells only whether the service is alive."""
    app = FastAPI(title=f"Turnout {presence.kind}", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(404)
    async def not_found(_: Request, error: Exception) -> Response:
        """Until the service has mounted its routes, tell "not yet" from "not found"."""
        if presence.state != "starting":
            return problem(404, "Not found", "This service has no such path.")
        answer = problem(503, "Starting", f"{presence.instance} is starting.")
        answer.headers["Retry-After"] = "1"
        return answer

    @app.get("/healthz")
    async def healthz(request: Request) -> dict[str, str]:
        details = presence.details if is_service(request, settings) else {}
        return {"status": "ok", "service": presence.kind, "instance": presence.instance, **details}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        if presence.state not in ("ready", "idle", "updating"):
            response.status_code = 503
        return {"state": presence.state}

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        if not is_service(request, settings):
            return unauthorized()
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


class LoopThread:
    """An asyncio loop in a separate thread, for programs whose main thread computes (the learner)."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="io", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=5)

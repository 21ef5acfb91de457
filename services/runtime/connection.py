"""How services reach the queue server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.runtime.logs import get_logger

log = get_logger(__name__)
T = TypeVar("T")
RETRY_SECONDS = 1.0
MAX_CONNECTIONS = 4096
"""Every command in flight has a connection of its own, so a burst of requests to the API needs many; the library's
limit is 100, and what goes beyond it is an error."""


_REFUSALS = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")


def connect(url: str) -> Redis:
    """A client that survives restarts of the server: calls are retried for about 20 s before the error shows, each on a
    new connection, so that a primary which was demoted to a replica is left for the one its address leads to now."""
    return _client(url, retries=15, timeout_seconds=5.0)


def connect_impatiently(url: str) -> Redis:
    """The same for calls that a person waits for: if the server is away the error shows at once, if it hangs in
    six seconds."""
    return _client(url, retries=1, timeout_seconds=1.5)


def _client(url: str, retries: int, timeout_seconds: float) -> Redis:
    return Redis.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        retry=Retry(ExponentialBackoff(cap=2.0, base=0.05), retries),
        retry_on_error=[RedisConnectionError, RedisTimeoutError, ConnectionError, ReadOnlyError],
        socket_connect_timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        health_check_interval=30,
    )


async def until_served(call: Callable[[], Awaitable[T]]) -> T:
    """The answer to a call, made again every second while the queue server does not take it."""
    while True:
        try:
            return await call()
        except RedisError as error:
            log.warning("the queue server does not serve; trying again", error=str(error))
            await asyncio.sleep(RETRY_SECONDS)


def as_text(value: object) -> str:
    """The text of a reply, whatever its bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def is_outage(error: BaseException) -> bool:
    """Whether the queue server cannot serve at the moment, which starting again does not fix: it is away, or it takes
    no writes (disk or memory full, demoted to a replica)."""
    away = RedisConnectionError | RedisTimeoutError | ReadOnlyError | OutOfMemoryError
    return isinstance(error, away) or (isinstance(error, ResponseError) and str(error).startswith(_REFUSALS))

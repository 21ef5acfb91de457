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
"""Every command in flight needs its own connection, so a burst of API requests needs many. The library's default limit
is 100, beyond which commands fail."""


_REFUSALS = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")


def connect(url: str) -> Redis:
    """A client that survives restarts of the server. It retries calls for about 20 s before it raises, each on another
    connection, so that after a failover it reaches the primary that the address resolves to."""
    return _client(url, retries=15, timeout_seconds=5.0)


def connect_impatiently(url: str) -> Redis:
    """A client for calls that a user waits for: it raises immediately if the server is down, and within six seconds if
    it hangs."""
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
    """The result of a call, which is repeated every second while the queue server is unavailable."""
    while True:
        try:
            return await call()
        except RedisError as error:
            log.warning("queue server unavailable, retrying", error=str(error))
            await asyncio.sleep(RETRY_SECONDS)


def as_text(value: object) -> str:
    """A reply as text; bytes that are not UTF-8 are replaced."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def is_outage(error: BaseException) -> bool:
    """Whether the queue server is unavailable, which restarting the caller does not fix: it is down, or rejects writes
    (disk or memory full, demoted to a replica)."""
    away = RedisConnectionError | RedisTimeoutError | ReadOnlyError | OutOfMemoryError
    return isinstance(error, away) or (isinstance(error, ResponseError) and str(error).startswith(_REFUSALS))

"""Presence of service instances: their heartbeats, and the run that each is assigned to.

Both are plain keys: a record that expires, and a run id that the API writes. A service compares its assignment with its
current work and acts on the difference, so restarts on either side need no protocol.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import lru_cache

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.contracts import streams
from services.contracts.heartbeat import (
    HEARTBEAT_EXPIRES_SECONDS,
    HEARTBEAT_SECONDS,
    ServiceKind,
    ServiceRecord,
    ServiceState,
)
from services.runtime.connection import as_text
from services.runtime.logs import get_logger

log = get_logger(__name__)


LOOK_SECONDS = 0.1
"""How soon a change that others act on is published."""
NAMESAKE = "namesake"
"""Detail of a record: another living process uses its name."""


class Presence:
    """This instance's own record. Change the fields; `beat` publishes them every second, and `state`, `run_id` and
    `weight_version`, on which others act, when they change."""

    def __init__(self, redis: Redis, kind: ServiceKind, instance: str, url: str) -> None:
        self.redis = redis
        self.kind: ServiceKind = kind
        self.instance = instance
        self.url = url
        self.state: ServiceState = "starting"
        self.run_id: str | None = None
        self.weight_version: int | None = None
        self.tokens_total = 0
        self.count_unfinished: Callable[[], int] = lambda: 0
        """Gives `ServiceRecord.tokens_unfinished`; asked at each heartbeat."""
        self.details: dict[str, str] = {}
        self._started_at = time.time()
        self._is_published = False
        self._waiting_for = ""
        self._waiting_since: float | None = None
        """On the monotonic clock."""

    def waits_for(self, what: str) -> None:
        """Set what the instance waits for; an empty text while it works."""
        if what != self._waiting_for:
            self._waiting_for = what
            self._waiting_since = time.monotonic() if what else None

    def record(self) -> ServiceRecord:
        """The current record."""
        now, since = time.time(), self._waiting_since
        return ServiceRecord(
            kind=self.kind,
            instance=self.instance,
            url=self.url,
            state=self.state,
            pid=os.getpid(),
            started_at=self._started_at,
            at=now,
            run_id=self.run_id,
            weight_version=self.weight_version,
            waiting_for=self._waiting_for,
            waiting_since=None if since is None else now - (time.monotonic() - since),
            tokens_total=self.tokens_total,
            tokens_unfinished=self.count_unfinished(),
            details=self.details,
        )

    async def publish(self) -> None:
        """Write the record. Reports it if another living process has the same name: both would take each other's groups
        and overwrite each other's numbers."""
        key, text = streams.service(self.instance), msgspec.json.encode(self.record())
        before = await self.redis.set(key, text, ex=int(HEARTBEAT_EXPIRES_SECONDS), get=True)
        if self._is_published:  # before that, the record may be of an earlier process, which has died
            self._look_for_namesake(before)
        self._is_published = True

    def _look_for_namesake(self, before: object) -> None:
        """`before`: what the key held, by right this process's own last record."""
        try:
            other = msgspec.json.decode(before, type=ServiceRecord) if isinstance(before, bytes) else None
        except msgspec.DecodeError:
            return
        if other is None or (other.started_at, other.pid) == (self._started_at, os.getpid()):
            self.details.pop(NAMESAKE, None)
            return
        if NAMESAKE not in self.details:
            log.error("name taken", instance=self.instance, other_url=other.url, other_pid=other.pid)
        self.details[NAMESAKE] = (
            f"{other.url} (pid {other.pid}) has the same name. Give each instance a different TURNOUT_INSTANCE."
        )

    def _acted_on(self) -> tuple[ServiceState, str | None, int | None]:
        return self.state, self.run_id, self.weight_version

    async def beat(self) -> None:
        """Publish the record every second, and after a change, until cancelled; then delete it."""
        try:
            while True:
                shown = self._acted_on()
                try:
                    await self.publish()
                except RedisError as error:
                    log.warning("heartbeat failed", error=str(error))
                due = time.monotonic() + HEARTBEAT_SECONDS
                await asyncio.sleep(min(LOOK_SECONDS, HEARTBEAT_SECONDS))
                while shown == self._acted_on() and (left := due - time.monotonic()) > 0:
                    await asyncio.sleep(min(LOOK_SECONDS, left))
        finally:
            try:
                await asyncio.wait_for(self.redis.delete(streams.service(self.instance)), timeout=1)
            except (RedisError, TimeoutError):
                pass  # the record expires on its own

    async def assignment(self) -> str | None:
        """The run that the API has assigned to this instance; also None for an invalid run id."""
        key = streams.assignment(self.instance)
        value = await self.redis.get(key)
        if not isinstance(value, bytes):
            return None
        run_id = value.decode(errors="replace")
        if not streams.is_run_id(run_id):
            _complain(key, f"{run_id[:100]!r} is not a run id")
            return None
        return run_id


async def list_services(redis: Redis) -> list[ServiceRecord]:
    """All living instances by name. Skips records that are unreadable, for example because they are of another release,
    or that do not match their key."""
    keys = [key async for key in redis.scan_iter(match=streams.service("*"), count=1000)]
    values = await redis.mget(keys) if keys else []
    records: list[ServiceRecord] = []
    for key, value in zip(keys, values, strict=True):
        if value is None:
            continue
        name = as_text(key)
        try:
            record = msgspec.json.decode(value, type=ServiceRecord)
        except msgspec.DecodeError as error:
            _complain(name, f"{error}; it may be of another release")
            continue
        if streams.service(record.instance) == name:
            records.append(record)
        else:
            _complain(name, f"it names {record.instance[:100]!r}")
    return sorted(records, key=lambda record: record.instance)


@lru_cache(maxsize=100)
def _complain(key: str, error: str) -> None:
    """Log it once, not at every check."""
    log.error("service record ignored", key=key, error=error)

"""Reads the heartbeats of a home's services from its queue server, for the launcher's table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import msgspec

from services.contracts import streams
from services.contracts.heartbeat import ServiceRecord

if TYPE_CHECKING:
    from redis import Redis


class Heartbeats:
    """A reader that never blocks for long and never raises: without a queue server there are no heartbeats."""

    def __init__(self, redis_url: str) -> None:
        import redis

        self._errors = (redis.RedisError, OSError)
        self._redis: Redis = redis.Redis.from_url(redis_url, socket_connect_timeout=1, socket_timeout=1)

    def read(self, pids: dict[str, int]) -> dict[str, ServiceRecord]:
        """Records by instance. `pids`: instances and their processes; records of other processes are stale."""
        if not pids:
            return {}
        try:
            values = self._redis.mget([streams.service(instance) for instance in pids])
        except self._errors:
            return {}
        found = {}
        for (instance, pid), value in zip(pids.items(), values, strict=True):
            record = _decode(value)
            if record is not None and record.pid == pid:
                found[instance] = record
        return found

    def close(self) -> None:
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _decode(value: bytes | str | None) -> ServiceRecord | None:
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=ServiceRecord)
    except msgspec.DecodeError:
        return None

"""Verdicts of judge models by digest of what they were asked, kept in the queue server for all verifiers.

A verifier that dies after it asked, and before its group was published, leaves the verdict here. Whoever takes the
group over finds it, and does not ask for another, which could differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from redis.asyncio import Redis

from services.contracts import streams
from services.runtime.connection import until_served
from services.verifier.rewards.judges.answers import Answer

MOST_ENTRIES: Final = 50_000
"""Entries of one generation. Once the newer one is full, it replaces the older one."""
_FIND: Final = """
return redis.call('HGET', KEYS[1], ARGV[1]) or redis.call('HGET', KEYS[2], ARGV[1])
"""
_KEEP: Final = """
local found = redis.call('HGET', KEYS[1], ARGV[1]) or redis.call('HGET', KEYS[2], ARGV[1])
if found then return found end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then redis.call('RENAME', KEYS[1], KEYS[2]) end
return ARGV[2]
"""


def digest(body: Mapping[str, Any]) -> bytes:
    """Digest of a request: model, rubric, prompt, response and sampling settings, whatever the order of fields."""
    return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).digest()


class Cache:
    """Finds and keeps verdicts. Waits while the queue server is unavailable."""

    def __init__(self, redis: Redis, most_entries: int = MOST_ENTRIES) -> None:
        self._redis = redis
        self._most_entries = most_entries

    async def find(self, key: bytes) -> Answer | None:
        found = await until_served(lambda: self._redis.eval(_FIND, 2, *streams.JUDGEMENTS, key))
        return None if found is None else msgspec.json.decode(found, type=Answer)

    async def keep(self, key: bytes, answer: Answer) -> Answer:
        """Keep an answer, unless there is one; returns the one that is kept."""
        text = msgspec.json.encode(answer)
        found = await until_served(
            lambda: self._redis.eval(_KEEP, 2, *streams.JUDGEMENTS, key, text, str(self._most_entries))
        )
        return msgspec.json.decode(found, type=Answer)

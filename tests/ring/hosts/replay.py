"""What a run was trained on, recorded as it goes by, and given to another run in place of samples.

Sampling is not reproducible, training is: on the same groups, an undisturbed run must end with the same bits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec
import redis as redis_sync

from services.contracts import codec, streams
from services.contracts.messages import PromptTask, ScoredGroup

BLOCK_MILLISECONDS = 200
M = TypeVar("M", bound=msgspec.Struct)


class Reader:
    """A thread that sees each message of a stream once, without taking it from whom it is for."""

    def __init__(self, url: str, stream: str) -> None:
        self.redis = redis_sync.Redis.from_url(url)
        self._stream = stream
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        for data in self._messages():
            self.take(data)

    def take(self, data: bytes) -> None:
        raise NotImplementedError

    def _messages(self) -> Iterator[bytes]:
        seen = b"0"
        while not self._ended.is_set():
            found: Any = self.redis.xread({self._stream: seen}, block=BLOCK_MILLISECONDS)
            for _, entries in found or ():
                for message_id, fields in entries:
                    seen = message_id
                    yield fields[b"m"]

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


class Recorder(Reader):
    """Keeps a run's scored groups, which stay on their stream until a checkpoint holds them."""

    def __init__(self, url: str, run_id: str) -> None:
        super().__init__(url, streams.scored(run_id))
        self.groups: dict[str, ScoredGroup] = {}
        self.num_twice = 0
        """Groups that came again as another message."""

    def take(self, data: bytes) -> None:
        group = codec.decode(data, ScoredGroup)
        self.num_twice += group.group.task.group_id in self.groups
        self.groups[group.group.task.group_id] = group


class Player(Reader):
    """Answers a run's prompts with recorded groups."""

    def __init__(self, url: str, run_id: str, groups: Mapping[str, ScoredGroup]) -> None:
        super().__init__(url, streams.prompts(run_id))
        self._scored, self._groups = streams.scored(run_id), groups

    def take(self, data: bytes) -> None:
        task = codec.decode(data, PromptTask)
        recorded = self._groups[task.group_id]
        group = msgspec.structs.replace(recorded.group, task=task)
        message = codec.encode(msgspec.structs.replace(recorded, group=group))
        self.redis.xadd(self._scored, {b"m": message})

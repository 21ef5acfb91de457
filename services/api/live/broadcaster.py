"""Keeps recent events in memory, so that one database write serves any number of event-stream clients.

Each run with listeners has a window of its newest entries. A client that is behind the window reads the database
instead, so no client loses an entry or makes the API keep more than the window.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

WINDOW = 500
GATHER_SECONDS = 0.2
"""How long after an entry listeners are woken, so that all entries of a training step are sent together: with many
listeners, most of the cost is sending."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a run's event stream, ready to be sent."""

    id: int
    type: str
    data: str
    """JSON text."""


@dataclass(slots=True)
class _Channel:
    floor: int | None = None
    """All entries with an id above this are in `window`; None until the first entry arrives."""
    window: deque[Entry] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    waking: asyncio.TimerHandle | None = None
    num_listeners: int = 0
    ended: bool = False

    def wake(self) -> None:
        self.waking = None
        self.news.set()
        self.news = asyncio.Event()


class Broadcaster:
    """The windows of all runs that have listeners."""

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}

    def join(self, run_id: str) -> None:
        """Start keeping the run's entries; every `join` needs a `leave`."""
        self._channels.setdefault(run_id, _Channel()).num_listeners += 1

    def leave(self, run_id: str) -> None:
        channel = self._channels[run_id]
        channel.num_listeners -= 1
        if not channel.num_listeners:
            del self._channels[run_id]

    @property
    def num_listeners(self) -> int:
        return sum(channel.num_listeners for channel in self._channels.values())

    def publish(self, run_id: str, entries: Sequence[Entry]) -> None:
        """Add entries, in increasing order of id, and wake the run's listeners. Nothing is kept for a run without
        listeners."""
        channel = self._channels.get(run_id)
        if channel is None or not entries:
            return
        before = entries[0].id - 1
        channel.floor = before if channel.floor is None else min(channel.floor, before)  # clients may name any id
        for entry in entries:
            channel.window.append(entry)
            if len(channel.window) > WINDOW:
                channel.floor = channel.window.popleft().id
        if channel.waking is None:
            channel.waking = asyncio.get_running_loop().call_later(GATHER_SECONDS, channel.wake)

    def wake_all(self) -> None:
        """Let every listener check whether it may continue."""
        for channel in self._channels.values():
            channel.wake()

    def end(self, run_id: str) -> None:
        """End the streams of the run's listeners, because it is deleted."""
        if (channel := self._channels.get(run_id)) is not None:
            channel.ended = True
            channel.wake()

    def has_ended(self, run_id: str) -> bool:
        return self._channels[run_id].ended

    def caught_up(self, run_id: str, last_id: int) -> None:
        """A listener has read the database up to `last_id`, its newest entry at that time: the window has what
        follows."""
        channel = self._channels[run_id]
        if channel.floor is None:
            channel.floor = last_id

    def news(self, run_id: str) -> asyncio.Event:
        """An event that is set at the next `publish`. Take it before reading, so that no entry is missed."""
        return self._channels[run_id].news

    def after(self, run_id: str, last_id: int) -> list[Entry] | None:
        """Entries after `last_id`, or None if the window does not reach back that far; read the database then."""
        channel = self._channels[run_id]
        if channel.floor is None or last_id < channel.floor:
            return None
        newer = takewhile(lambda entry: entry.id > last_id, reversed(channel.window))
        return list(newer)[::-1]

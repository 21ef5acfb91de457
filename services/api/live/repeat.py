"""Runs a background loop: do the work, then sleep until woken or due. A fault is recorded and not fatal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from services.contracts.pauses import growing_pause
from services.runtime.logs import get_logger
from services.runtime.process import end_if_cancelled

log = get_logger(__name__)
MAX_PAUSE_SECONDS = 5.0


@dataclass(slots=True)
class LoopStatus:
    """The state of the loops, for /readyz."""

    faults: dict[str, str] = field(default_factory=dict)
    """Loop name to its current fault; a healthy loop is absent."""
    rounds: dict[str, int] = field(default_factory=dict)
    """Rounds completed since the start."""


async def repeat(
    name: str,
    work: Callable[[], Awaitable[object]],
    status: LoopStatus,
    *,
    seconds: float,
    wake: asyncio.Event | None = None,
) -> None:
    """Run `work` repeatedly until cancelled: every `seconds`, or immediately when `wake` is set.

    After each consecutive fault the loop pauses longer, up to 5 s, and continues: its work is level-triggered, so a
    later round does what an earlier one could not. A cancellation that a library swallowed (redis-py writes through
    `asyncio.wait_for`, which does so in Python 3.11) ends the loop after the round.
    """
    num_faults = 0
    while True:
        end_if_cancelled()
        if wake is not None:
            wake.clear()
        try:
            await work()
        except Exception as error:
            num_faults += 1
            status.faults[name] = f"{type(error).__name__}: {error}"
            log.error("loop failed", loop=name, error=str(error), since=time.time(), exc_info=num_faults == 1)
            await asyncio.sleep(growing_pause(0.2, num_faults, MAX_PAUSE_SECONDS))
            continue
        num_faults = 0
        status.faults.pop(name, None)
        status.rounds[name] = status.rounds.get(name, 0) + 1
        if wake is None:
            await asyncio.sleep(seconds)
            continue
        await wait_at_most(wake, seconds)


async def wait_at_most(event: asyncio.Event, seconds: float) -> bool:
    """Whether `event` was set within `seconds`. (`asyncio.wait_for` of Python 3.11 can swallow a cancellation.)"""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True

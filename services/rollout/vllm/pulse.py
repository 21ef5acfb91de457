"""Whether an engine does anything at all while something waits for it.

An engine can hang alive: its process is stopped, or its threads wait for each other. No error shows then, and only a
new engine helps. Slow work must not be taken for that: a long prompt, a large model on a slow disk, a machine that is
busy or swaps. So each of these is a sign of life: a token, processor time, a process that waits for a processor or a
disk or is looked at by a debugger. And time counts only as far as this service lives through it: one that is stopped
together with its engine, or on a machine that sleeps, has seen nothing.

What this does not find: a hang that uses the processor, such as most waits for a GPU. The watchdog names it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psutil

from services.rollout.vllm.engine import process_ids
from services.rollout.vllm.server import EngineServer

LOOK_SECONDS = 5.0
STILL_SECONDS = 300.0
"""How long a hang must last. vLLM itself waits as long for workers in processes of their own."""
_LEAST_SHARE = 0.01
"""Of one processor. Threads that only wait use less."""
AT_WORK = frozenset({psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP, psutil.STATUS_TRACING_STOP})


@dataclass(frozen=True, slots=True)
class Signs:
    """What an engine shows at one moment."""

    num_tokens: int
    """Sampled so far of unfinished responses; of an engine that starts, what it has written."""
    cpu_seconds: float
    """Of all its processes."""
    is_at_work: bool = False
    """One of them has a state that a hung process has not."""
    pids: frozenset[int] = frozenset()
    """Of an engine that starts: which they are."""


class Pulse:
    """For how long an engine has shown no sign of life."""

    def __init__(self) -> None:
        self.still_seconds = 0.0
        self._last: tuple[float, Signs] | None = None

    def feel(self, now: float, signs: Signs | None) -> float:
        """One look, by the monotonic clock; `signs` None if nothing waits for the engine. Returns `still_seconds`."""
        last, self._last = self._last, None if signs is None else (now, signs)
        if signs is None or last is None:
            self.still_seconds = 0.0
            return 0.0
        seconds, before = now - last[0], last[1]
        worked = signs.cpu_seconds - before.cpu_seconds >= _LEAST_SHARE * seconds
        moved = (signs.num_tokens, signs.pids) != (before.num_tokens, before.pids)
        if worked or signs.is_at_work or moved:
            self.still_seconds = 0.0
        else:
            self.still_seconds += min(seconds, 2 * LOOK_SECONDS)
        return self.still_seconds


def signs_of(server: EngineServer) -> Signs | None:
    """None if nothing waits for the engine, or it has just died."""
    if server.engine is None or not server.is_waited_for:
        return None
    try:
        roots = [psutil.Process(pid) for pid in process_ids(server.engine)]
        processes = [*roots, *(child for root in roots for child in root.children(recursive=True))]
        times = [process.cpu_times() for process in processes]
        is_at_work = any(process.status() in AT_WORK for process in processes)
    except psutil.Error:
        return None
    return Signs(server.count_unfinished(), sum(one.user + one.system for one in times), is_at_work) if times else None


async def watch(server: EngineServer, replace: Callable[[float], Awaitable[None]]) -> None:
    """Call `replace` with the seconds of its stillness whenever the engine has hung for too long. Until cancelled."""
    pulse, engine = Pulse(), server.engine
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if server.engine is not engine:
            pulse, engine = Pulse(), server.engine
        if pulse.feel(time.monotonic(), signs_of(server)) >= STILL_SECONDS:
            await replace(pulse.still_seconds)

"""Detects an engine that hangs while something waits for it.

An engine can hang without an error: its process is stopped, or its threads are deadlocked. Only another engine helps
then. Slow work must not look like a hang: a long prompt, a large model on a slow disk, a machine that is busy or swaps.
Signs of life are therefore: a token, processor time, and a process that waits for a processor or a disk or is traced by
a debugger. Time counts only while this service runs: a service that is stopped together with its engine, or is on a
machine that sleeps, has observed nothing.

A hang that uses the processor, such as most waits for a GPU, is not detected here. The watchdog reports it.
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
"""Time without a sign of life that counts as a hang. vLLM waits as long for workers in separate processes."""
_LEAST_SHARE = 0.01
"""Share of one processor that counts as work. Threads that only wait use less."""
_POLLING_SHARE = 0.04
"""The same for each worker of a group, which polls while it waits: about 0.01 was measured with two idle workers."""
AT_WORK = frozenset({psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP, psutil.STATUS_TRACING_STOP})


@dataclass(frozen=True, slots=True)
class Signs:
    """An engine's signs of life at one moment."""

    num_tokens: int
    """Tokens sampled so far in unfinished responses; for a starting engine, units of `BYTES_OF_LIFE` written."""
    cpu_seconds: float
    """Processor time of all its processes."""
    is_at_work: bool = False
    """Whether a process is in a state that a hung process would not be in."""
    pids: frozenset[int] = frozenset()
    """For a starting engine, its processes."""
    num_workers: int = 0
    """Processes that may only be polling for work."""


class Pulse:
    """Measures how long an engine has shown no sign of life."""

    def __init__(self) -> None:
        self.still_seconds = 0.0
        self._last: tuple[float, Signs] | None = None

    def feel(self, now: float, signs: Signs | None) -> float:
        """Compare the signs with the last ones, and return `still_seconds`.

        Args:
            now: time on the monotonic clock.
            signs: None if nothing waits for the engine.
        """
        last, self._last = self._last, None if signs is None else (now, signs)
        if signs is None or last is None:
            self.still_seconds = 0.0
            return 0.0
        seconds, before = now - last[0], last[1]
        least = _LEAST_SHARE + _POLLING_SHARE * signs.num_workers
        worked = signs.cpu_seconds - before.cpu_seconds >= least * seconds
        moved = (signs.num_tokens, signs.pids) != (before.num_tokens, before.pids)
        if worked or signs.is_at_work or moved:
            self.still_seconds = 0.0
        else:
            self.still_seconds += min(seconds, 2 * LOOK_SECONDS)
        return self.still_seconds


def signs_of(server: EngineServer) -> Signs | None:
    """The engine's signs of life; None if nothing waits for it, or it has just died."""
    if server.engine is None or not server.is_waited_for:
        return None
    try:
        roots = [psutil.Process(pid) for pid in process_ids(server.engine)]
        workers = [child for root in roots for child in root.children(recursive=True)]
        times = [process.cpu_times() for process in (*roots, *workers)]
        is_at_work = any(process.status() in AT_WORK for process in roots)
        is_at_work |= any(process.status() in AT_WORK - {psutil.STATUS_RUNNING} for process in workers)
    except psutil.Error:
        return None
    seconds = sum(one.user + one.system for one in times)
    return Signs(server.count_unfinished(), seconds, is_at_work, num_workers=len(workers)) if times else None


async def watch(server: EngineServer, replace: Callable[[float], Awaitable[None]]) -> None:
    """Call `replace`, with the seconds without a sign of life, whenever the engine hangs. Runs until cancelled."""
    pulse, engine = Pulse(), server.engine
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if server.engine is not engine:
            pulse, engine = Pulse(), server.engine
        if pulse.feel(time.monotonic(), signs_of(server)) >= STILL_SECONDS:
            await replace(pulse.still_seconds)

"""Starts an engine, and ends a start that hangs.

A starting engine can hang like a running one (`pulse`): a forked process may wait for a lock that none of its threads
holds, or a hub or disk may stop responding. The same signs of life count, and in addition bytes written (of a model
being downloaded) and processes that come and go. Hanging processes are killed, upon which vLLM aborts the start. If it
does not, the thread itself hangs, and only restarting the service helps.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from services.rollout.vllm import engine as engines
from services.rollout.vllm import pulse
from services.rollout.vllm.engine import EngineSpec, EngineStartError
from services.rollout.vllm.pulse import AT_WORK, Pulse, Signs
from services.runtime.logs import get_logger

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = get_logger(__name__)
END_SECONDS = 60.0
"""Time for vLLM to notice that its processes were killed, and to abort the start."""
BYTES_OF_LIFE = 1 << 16
"""Bytes written between two checks that count as a sign of life. Fewer may be log lines."""
_TICKS = os.sysconf("SC_CLK_TCK")


class StuckStartError(Exception):
    """The thread that starts an engine hangs. A thread cannot be killed, so the service must exit."""


async def start(spec: EngineSpec) -> AsyncLLM:
    """Start an engine, and return it once it can sample.

    Raises:
        EngineStartError: vLLM failed, with its reason, or hung.
        StuckStartError: vLLM hung, and killing its processes did not help.
    """
    before = {process.pid for process in psutil.Process().children()}
    builder: list[int] = []

    def build() -> AsyncLLM:
        builder.append(threading.get_native_id())
        return engines.build(spec)

    building = asyncio.ensure_future(asyncio.to_thread(build))
    still = await _until_done_or_still(building, lambda: _signs(builder, before))
    if still is None:
        return building.result()
    log.error("engine start hangs", seconds=round(still))
    with suppress(psutil.Error):
        for process in _processes(before):
            process.kill()
    await asyncio.wait({building}, timeout=END_SECONDS)
    if not building.done():
        raise StuckStartError(f"The engine start hung in this process for {still:.0f} s, so the service exits.")
    if building.exception() is None:  # it finished after all
        engines.end(building.result())
    raise EngineStartError(
        f"The engine start hung for {still:.0f} s, so its processes were killed.",
        remedy="The server tries again automatically. If it hangs each time, see this service's log.",
    ) from building.exception()


async def _until_done_or_still(building: asyncio.Future[AsyncLLM], look: Callable[[], Signs | None]) -> float | None:
    """Wait until `building` is done or hangs. Returns the seconds without a sign of life if it hangs, else None."""
    felt = Pulse()
    while not building.done():
        await asyncio.wait({building}, timeout=pulse.LOOK_SECONDS)
        if not building.done() and felt.feel(time.monotonic(), look()) >= pulse.STILL_SECONDS:
            return felt.still_seconds
    return None


def _processes(before: set[int]) -> list[psutil.Process]:
    """The processes that the start has created so far, including their descendants."""
    roots = [child for child in psutil.Process().children() if child.pid not in before]
    return [*roots, *(process for root in roots for process in root.children(recursive=True))]


def _signs(builder: list[int], before: set[int]) -> Signs | None:
    """The start's signs of life; None if one of its processes has just ended."""
    try:
        seconds, written, at_work = _thread(builder[0])
        processes = _processes(before)
        for process in processes:
            times = process.cpu_times()
            seconds += times.user + times.system
            written += process.io_counters().write_chars
            at_work = at_work or process.status() in AT_WORK
    except (psutil.Error, OSError, IndexError):
        return None
    pids = frozenset(process.pid for process in processes)
    return Signs(written // BYTES_OF_LIFE, seconds, at_work, pids)


def _thread(number: int) -> tuple[float, int, bool]:
    """Processor seconds and bytes written by a thread of this process, and whether it is working."""
    folder = Path(f"/proc/self/task/{number}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    written = next(line for line in (folder / "io").read_text().splitlines() if line.startswith("wchar"))
    return (int(fields[11]) + int(fields[12])) / _TICKS, int(written.split()[1]), fields[0] in "RDt"

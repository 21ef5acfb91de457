"""Starting an engine, and ending a start that hangs.

An engine that starts can hang alive as a running one can (`pulse`): a forked process may wait for a lock that no thread
of its holds, a hub or a disk may fall silent. The same signs of life count, and besides them bytes that are written (a
model is downloaded) and processes that come and go. What hangs is killed, upon which vLLM gives the start up. Where
that does not help, the thread itself hangs, and only a new service process helps.
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
"""For vLLM to notice that its processes were killed, and for what it does then."""
BYTES_OF_LIFE = 1 << 16
"""Written between two looks. Fewer may be log lines."""
_TICKS = os.sysconf("SC_CLK_TCK")


class StuckStartError(Exception):
    """The thread that starts an engine hangs. It cannot be ended, only the service can."""


async def start(spec: EngineSpec) -> AsyncLLM:
    """An engine that can sample.

    Raises:
        EngineStartError: with vLLM's reason, or because it hung.
        StuckStartError: it hung, and killing its processes did not help.
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
    log.error("the engine hangs while it starts", seconds=round(still))
    with suppress(psutil.Error):
        for process in _processes(before):
            process.kill()
    await asyncio.wait({building}, timeout=END_SECONDS)
    if not building.done():
        raise StuckStartError(f"An engine's start has hung for {still:.0f} s in this process itself, which ends.")
    if building.exception() is None:  # it was done just now
        engines.end(building.result())
    raise EngineStartError(
        f"The engine hung for {still:.0f} s while it started; its processes were ended.",
        remedy="It is started again; if it hangs each time, see the log of this service.",
    ) from building.exception()


async def _until_done_or_still(building: asyncio.Future[AsyncLLM], look: Callable[[], Signs | None]) -> float | None:
    """None once `building` is done; the seconds without a sign of life where they are too many."""
    felt = Pulse()
    while not building.done():
        await asyncio.wait({building}, timeout=pulse.LOOK_SECONDS)
        if not building.done() and felt.feel(time.monotonic(), look()) >= pulse.STILL_SECONDS:
            return felt.still_seconds
    return None


def _processes(before: set[int]) -> list[psutil.Process]:
    """What the start has brought so far, processes of processes included."""
    roots = [child for child in psutil.Process().children() if child.pid not in before]
    return [*roots, *(process for root in roots for process in root.children(recursive=True))]


def _signs(builder: list[int], before: set[int]) -> Signs | None:
    """None where one has just ended."""
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
    """Processor seconds and written bytes of a thread of this process, and whether it is at work."""
    folder = Path(f"/proc/self/task/{number}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    written = next(line for line in (folder / "io").read_text().splitlines() if line.startswith("wchar"))
    return (int(fields[11]) + int(fields[12])) / _TICKS, int(written.split()[1]), fields[0] in "RDt"

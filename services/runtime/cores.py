"""How many CPU cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

PROCESS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores in the CPU affinity, at most the quota (cgroup v2) of the container or service, rounded up; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def _quota() -> float:
    """The smallest quota of the process's control group and those around it, in cores; infinity without one."""
    try:
        own = next(line[3:] for line in PROCESS.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return math.inf
    folder = CGROUPS / own.strip("/")
    return min(_quota_of(place) for place in (folder, *folder.parents) if place.is_relative_to(CGROUPS))


def _quota_of(folder: Path) -> float:
    """From `cpu.max`, which is "max 100000" or "<microseconds> <period>"."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return math.inf
    return math.inf if limit == "max" else int(limit) / int(period)

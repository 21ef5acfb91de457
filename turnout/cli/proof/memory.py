"""The most memory that services held while they were looked at: of the GPU by nvidia-smi, of the CPU as resident."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

import psutil

GIB = 2**30
WATCHED = ("learner", "rollout")


class Peaks:
    """Peaks of learner and rollout server, with their children."""

    def __init__(self, *, cpu: bool) -> None:
        self._cpu = cpu
        self._peaks: dict[str, float] = {}

    def look(self, pids: Mapping[str, int]) -> None:
        """Look once. `pids`: instances with their processes."""
        used = None if self._cpu else gpu_bytes()
        for instance, pid in pids.items():
            service = instance.rpartition("-")[0]
            if service not in WATCHED:
                continue
            try:
                parent = psutil.Process(pid)
                family = [parent, *parent.children(recursive=True)]
                found = sum(item.memory_info().rss if used is None else used.get(item.pid, 0.0) for item in family)
            except psutil.Error:
                continue
            self._peaks[service] = max(found, self._peaks.get(service, 0.0))

    def text(self) -> str:
        """What each held at most."""
        if not any(self._peaks.values()):
            return "memory not visible to nvidia-smi"
        where = "resident in CPU memory" if self._cpu else "of the GPU"
        return " and ".join(f"{name} at most {peak / GIB:.2f} GiB" for name, peak in self._peaks.items()) + f" {where}"


def gpu_bytes() -> dict[int, float]:
    """Bytes of GPU memory by pid; empty if nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        rows = [line.split(",") for line in done.stdout.splitlines() if line.strip()]
        return {int(pid): float(mib) * 2**20 for pid, mib in rows}
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}

"""Reads what the machine's /proc says about a running program, from outside its room."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Proc:
    """The machine's /proc, which the zygote keeps open when it enters its room."""

    folder: int
    """Descriptor of /proc; programs do not inherit it."""

    def num_threads(self, handle: int) -> int:
        """Number of threads of the process behind a pidfd; 0 if it has ended or is hidden."""
        return len(self._threads(self._pid(handle)))

    def queued_seconds(self, handle: int) -> float | None:
        """Longest time that one of its threads waited for a core; None if this kernel does not say."""
        pid, waits = self._pid(handle), []
        for thread in self._threads(pid):
            fields = self._read(f"{pid}/task/{thread}/schedstat").split()
            if len(fields) == 3:
                waits.append(int(fields[1]) / 1e9)
        return max(waits, default=None)

    def _pid(self, handle: int) -> int:
        """The process's id in this /proc; -1 if it has none."""
        for line in self._read(f"self/fdinfo/{handle}").splitlines():
            name, _, value = line.partition(":")
            if name == "Pid":
                return int(value)
        return -1

    def _threads(self, pid: int) -> list[str]:
        try:
            folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.folder)
        except OSError:
            return []
        try:
            return os.listdir(folder)
        except OSError:
            return []
        finally:
            os.close(folder)

    def _read(self, path: str) -> str:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.folder)
        except OSError:
            return ""
        try:
            return os.read(descriptor, 4096).decode()
        except OSError:
            return ""
        finally:
            os.close(descriptor)

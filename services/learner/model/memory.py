"""The most memory that this process has held."""

from __future__ import annotations

import re
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held so far: what torch has allocated on a GPU, resident memory on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # `getrusage` would count the memory of the process that started this one.
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found is not None, "Linux tells it of every process"
    return int(found[1]) * 1024

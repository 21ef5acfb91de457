"""What learners of one run on several machines tell each other.

A helper reports to the main learner twice a second and is answered with what it should do: ranks of which attempt to
run, if any. Both compare that with what is, so a lost message or a restart on either side needs nothing further.
Silence is a message too: after `SILENCE_SECONDS` the main learner ends the attempt, and the helper ends its ranks. So
whatever is cut or killed, no rank outlives its run by more than that.
"""

from __future__ import annotations

import os
import platform
import socket
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Annotated

import msgspec
from blake3 import blake3

import services
from services.contracts.heartbeat import HEARTBEAT_SECONDS

PATH = "/v1/machines"
REPORT_SECONDS = 0.5 * HEARTBEAT_SECONDS
SILENCE_SECONDS = 10.0
MAX_BYTES = 64 << 10
_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "safetensors", "numpy")
"""Those whose versions may change what a rank computes or how it meets the others."""
Text = Annotated[str, msgspec.Meta(max_length=4000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A helper's word: who it is, and what its ranks do."""

    instance: Name
    host: Name
    started_at: float
    """Unix time; tells one process of a name from the next."""
    release: dict[str, Text]
    attempt: Text = ""
    """The attempt whose ranks run here, or have ended; empty for none."""
    code: int | None = None
    """Exit code of those ranks: the first bad one, else 0; None while they run."""
    error: Text = ""
    """Why they ended."""


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer. Without an attempt there is nothing to do."""

    attempt: Text = ""
    run_id: Text = ""
    first_rank: Annotated[int, msgspec.Meta(ge=0)] = 0
    num_ranks: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    """On this machine."""
    world_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    address: Text = ""
    """Where rank 0 waits for the others."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    refusal: Text = ""
    """Why this machine gets no ranks."""


@lru_cache(maxsize=1)
def release() -> dict[str, str]:
    """What must be the same on all machines of a run."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    root = Path(next(iter(services.__path__)))
    digest = blake3()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    found["turnout"] = f"{metadata.version('turnout')} (source {digest.hexdigest()[:12]})"
    return found


def difference(theirs: dict[str, str], ours: dict[str, str]) -> str:
    """The first thing in which two releases differ, as "torch 2.12.0 instead of 2.13.0"; empty for none."""
    for name in ["turnout", *sorted({*theirs, *ours})]:
        if theirs.get(name) != ours.get(name):
            return f"{name} {theirs.get(name, 'unknown')} instead of {ours.get(name, 'unknown')}"
    return ""


def this_host() -> str:
    return socket.gethostname() or os.uname().nodename

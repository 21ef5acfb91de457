"""Leaves the processor to others: background work next to a training run on the same machine (docs/evaluations.md).

Linux groups the processes of a session for its scheduler (`man 7 sched`, autogroups), and `turnout up` starts each
service in a session of its own. A process's own niceness only counts within its group, so the group's is set here. It
includes the engine's processes, and unlike a process's it may be lowered again without privileges. In containers and on
other systems there may be no such groups; then the containers' shares of the processor decide.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")
BACKGROUND_NICENESS = 10
"""A tenth of the weight of others."""


def give_way(yes: bool) -> None:
    """Let the processes of this session run only while others leave the processor idle, or no longer so."""
    with suppress(OSError):
        AUTOGROUP.write_text(str(BACKGROUND_NICENESS if yes else 0))

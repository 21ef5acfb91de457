"""Leaves the processor to others: background work next to a training run on the same machine (docs/evaluations.md).

Linux groups the processes of a session for its scheduler (`man 7 sched`, autogroups), and `turnout up` starts each
service in a session of its own. A process's own niceness only counts within its group, so the group's is set here. It
includes the engine's processes, and unlike a process's it may be lowered again without privileges. In containers and on
other systems there may be no such groups; then the containers' shares of the processor decide.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")
BACKGROUND_NICENESS = 19
"""The lowest: a seventieth of the weight of others."""


class Courtesy:
    """The niceness of this session: lower priority during background work, and afterwards what it was before."""

    def __init__(self) -> None:
        self._before: int | None = None
        """The niceness to return to; None while it is untouched."""

    def give_way(self, yes: bool) -> None:
        """Let this session's processes run mostly while others leave the processor idle, or no longer so."""
        if yes == (self._before is not None):
            return
        with suppress(OSError):
            if yes:
                found = re.search(r"nice (-?\d+)", AUTOGROUP.read_text())
                before = int(found.group(1)) if found else 0
                AUTOGROUP.write_text(str(max(before, BACKGROUND_NICENESS)))
                self._before = before
            elif self._before is not None:
                AUTOGROUP.write_text(str(self._before))
                self._before = None

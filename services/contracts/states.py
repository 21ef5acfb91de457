"""Run states and the transitions between them. Whatever changes a run's state calls `check_transition`."""

from __future__ import annotations

from typing import Final, Literal, get_args

from services.contracts.errors import ConflictError

RunState = Literal["queued", "starting", "running", "paused", "stopping", "stopped", "succeeded", "failed"]
DesiredState = Literal["running", "paused", "stopped", "stopped_now"]
"""What the user asked for. `stopped` ends with a checkpoint, `stopped_now` immediately and without one."""

RUN_STATES: Final[tuple[RunState, ...]] = get_args(RunState)
ACTIVE_STATES: Final[frozenset[RunState]] = frozenset({"starting", "running", "paused", "stopping"})
"""Service instances are assigned to the run."""
TERMINAL_STATES: Final[frozenset[RunState]] = frozenset({"stopped", "succeeded", "failed"})

TRANSITIONS: Final[dict[RunState, frozenset[RunState]]] = {
    "queued": frozenset({"starting", "stopped", "failed"}),
    "starting": frozenset({"running", "paused", "stopping", "stopped", "failed", "queued"}),
    "running": frozenset({"starting", "paused", "stopping", "stopped", "succeeded", "failed"}),
    "paused": frozenset({"starting", "running", "stopping", "stopped", "failed"}),
    "stopping": frozenset({"stopped", "succeeded", "failed"}),
    "stopped": frozenset({"queued"}),
    "succeeded": frozenset(),
    "failed": frozenset({"queued"}),
}
"""`running -> starting`: the learner died and restarts. `stopped -> queued`, `failed -> queued`: a resume."""

_REMEDIES: Final[dict[RunState, str]] = {
    "queued": "Wait until it has started, or stop it.",
    "starting": "Wait until it has started.",
    "running": "Check its current state.",
    "paused": "Resume it first.",
    "stopping": "Wait until it has stopped; it can be resumed then.",
    "stopped": "Resume it first.",
    "succeeded": "A finished run is final; fork it to continue training.",
    "failed": "Fix what the run's reason names, then resume it.",
}


def check_transition(old: RunState, new: RunState) -> None:
    """Raise `ConflictError` unless a run may go from `old` to `new`. Staying in a state is always allowed."""
    if old != new and new not in TRANSITIONS[old]:
        raise ConflictError(f"A run that is {old} cannot become {new}.", remedy=_REMEDIES[old])

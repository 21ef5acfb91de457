"""Accounts for every group that was fed: fed = trained + replaced + dropped (by reason) + in flight, at all times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

DropReason = Literal["stale", "faulty", "too_few", "lost", "fatal"]
DROP_REASONS: Final[tuple[DropReason, ...]] = get_args(DropReason)
"""stale: a token is older than max_staleness allows. faulty: no usable sample (infrastructure faults).
too_few: fewer usable samples than advantages need. lost: the message was unreadable each time it was fed (dead
letters). fatal: the message crashed the services that processed it (dead letters)."""


@dataclass(slots=True)
class Ledger:
    """Counts of train groups since the run began. Groups are decided in feeding order, so `decided` is a position."""

    trained: int = 0
    dropped: dict[DropReason, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    replaced: int = 0
    """Groups without a fault that would have taught nothing (`training.refill`)."""

    @property
    def num_dropped(self) -> int:
        return sum(self.dropped.values())

    @property
    def num_untrained(self) -> int:
        """Groups dropped or replaced: each gives the feeder credit for another."""
        return self.replaced + self.num_dropped

    @property
    def decided(self) -> int:
        """Number of groups trained, replaced or dropped, which is also the sequence number of the next to decide."""
        return self.trained + self.num_untrained

    def copy(self) -> Ledger:
        return Ledger(self.trained, dict(self.dropped), self.replaced)

    def groups(self, fed: int) -> dict[str, int]:
        """The counts in the form of `StepFinished.groups`."""
        counts = {"fed": fed, "trained": self.trained, "in_flight": fed - self.decided, "replaced": self.replaced}
        return {**counts, **{f"dropped_{reason}": count for reason, count in self.dropped.items()}}

    def to_json(self) -> dict[str, int]:
        counts = {"trained": self.trained, "replaced": self.replaced}
        return counts | {str(reason): count for reason, count in self.dropped.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, int]) -> Ledger:
        dropped = {reason: values.get(reason, 0) for reason in DROP_REASONS}
        return cls(values["trained"], dropped, values.get("replaced", 0))

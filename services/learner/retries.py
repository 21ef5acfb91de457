"""Whether to start the training program again after a crash, and when."""

from __future__ import annotations

from dataclasses import dataclass

from services.contracts.pauses import growing_pause


@dataclass(slots=True)
class Attempts:
    """Restarts after crashes: with growing pauses, and a bounded number of times unless a step is finished."""

    limit: int = 5
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 30.0
    failed: int = 0
    step: int = 0

    def progressed(self, step: int) -> None:
        """Record the newest finished step. Crashes before it stop counting."""
        if step > self.step:
            self.step, self.failed = step, 0

    def crashed(self) -> float | None:
        """Seconds to wait before the next start, or None to give up."""
        self.failed += 1
        if self.failed > self.limit:
            return None
        return growing_pause(self.first_pause_seconds, self.failed, self.longest_pause_seconds)

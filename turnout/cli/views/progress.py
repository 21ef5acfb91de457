"""What is known about a watched run, and its parts as single lines of text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.contracts.errors import UnavailableError
from services.contracts.plain_text import in_line
from services.contracts.records import Evaluation, Run, RunEvent, Service, Step
from turnout.client.client import Client

RATE_STEPS = 20
"""The time left is estimated from the mean duration of this many steps."""


@dataclass(slots=True)
class Progress:
    """What is known about one run; `refresh` updates it."""

    run_id: str
    run: Run | None = None
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    """Fields: `at`, `level`, `source`, `text`."""
    services: list[Service] = field(default_factory=list)
    fault: str = ""
    """Why the last refresh failed; empty if it succeeded."""
    last_id: str | None = None
    """Id of the newest event read."""

    def refresh(self, client: Client) -> None:
        """Fetch what is new. If the API does not respond, `fault` says so; other errors are raised."""
        try:
            run = client.run(self.run_id)  # before the events, so that an ended run's last ones are among them
            for event in client.events(self.run_id, after=self.last_id, follow=False):
                self._take(event)
            self.services = client.services()
            self.run = run
            self.fault = ""
        except UnavailableError as error:
            self.fault = error.message

    def _take(self, event: RunEvent) -> None:
        self.last_id = event.id
        if event.type == "step":
            step = msgspec.convert(event.data, Step)
            if step.step <= self.step:  # resumed from an older checkpoint
                self.steps = [item for item in self.steps if item.step < step.step]
            self.steps.append(step)
        elif event.type == "evaluation":
            self.evaluations.append(msgspec.convert(event.data, Evaluation))
        elif event.type == "note":
            self.notes.append(event.data)

    @property
    def num_steps(self) -> int:
        return self.run.num_steps if self.run is not None else 0

    @property
    def step(self) -> int:
        return self.steps[-1].step if self.steps else 0

    def metric(self, name: str) -> float | None:
        """The newest value of a metric."""
        return next((step.metrics[name] for step in reversed(self.steps) if name in step.metrics), None)

    @property
    def seconds_left(self) -> float | None:
        """Time to the last step at the current speed; None before the first step."""
        recent = [step.metrics["seconds"] for step in self.steps[-RATE_STEPS:] if "seconds" in step.metrics]
        if not recent or self.run is None:
            return None
        return (self.num_steps - self.step) * sum(recent) / len(recent)


class News:
    """What is new in `progress` since the last `take`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._num_notes = self._num_evaluations = self._step = 0

    def take(self) -> tuple[list[dict[str, Any]], list[Evaluation], list[Step]]:
        """New notes, evaluations and steps. Steps that are trained again after a resume count as new."""
        progress = self._progress
        notes, evaluations = progress.notes[self._num_notes :], progress.evaluations[self._num_evaluations :]
        self._num_notes, self._num_evaluations = len(progress.notes), len(progress.evaluations)
        before, self._step = min(self._step, progress.step), progress.step
        return notes, evaluations, [step for step in progress.steps if step.step > before]


def evaluation_text(item: Evaluation) -> str:
    """An evaluation in one line."""
    when = "before training" if item.step == 0 else f"after step {item.step}"
    return (
        f"evaluation {when}: avg@{item.num_samples} {item.accuracy:.1%}, pass@{item.num_samples} {item.pass_at_k:.1%} "
        f"on {item.num_questions} {item.split} questions"
    )


def note_text(note: dict[str, Any]) -> str:
    """A note in one line."""
    return in_line(f"{note.get('level', 'info')}: {note.get('source', '')}: {note.get('text', '')}")


def service_text(service: Service) -> str:
    """A service's state and what it is waiting for."""
    return f"{service.state}, waiting for {service.waiting_for}" if service.waiting_for else service.state

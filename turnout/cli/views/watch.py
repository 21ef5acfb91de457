"""`turnout runs watch`: a run's progress until it ends, as a live view in a terminal and as plain lines elsewhere.

Once a second it asks for the run's events behind the last one that it saw (Last-Event-ID), so a restart of the API, a
lost connection or a laptop that slept costs nothing but a pause in the view.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.contracts.errors import UnavailableError
from services.contracts.plain_text import in_line
from turnout.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED
from turnout.cli.interrupts import Interrupts
from turnout.cli.output import duration
from turnout.cli.terminal import console, say, say_json
from turnout.client.client import Client
from turnout.client.models import Evaluation, Run, RunEvent, Service, Step

POLL_SECONDS = 1.0
RATE_STEPS = 20
"""Time left is reckoned from the mean time of so many steps."""

PLAIN_METRICS = (
    ("reward", "reward_mean", "{:.3f}"),
    ("accuracy", "accuracy", "{:.3f}"),
    ("grpo", "routing_ratio_grpo", "{:.2f}"),
    ("sdpo", "routing_ratio_sdpo", "{:.2f}"),
    ("policy entropy", "policy_entropy_nats", "{:.3f}"),
    ("teacher entropy", "teacher_entropy_nats", "{:.3f}"),
    ("staleness", "staleness_mean", "{:.2f}"),
    ("tokens/s", "tokens_per_second", "{:.0f}"),
)


@dataclass(slots=True)
class Progress:
    """What is known of the watched run; `refresh` brings it up to date."""

    run_id: str
    run: Run | None = None
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    """Warnings and the like: `at`, `level`, `source`, `text`."""
    services: list[Service] = field(default_factory=list)
    fault: str = ""
    """Why the last refresh brought nothing; empty where it did."""
    last_id: str | None = None
    """Id of the newest event that was taken."""

    def refresh(self, client: Client) -> None:
        """Ask for what is new. An API that does not answer is noted in `fault`; other errors are raised."""
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
            if step.step <= self.step:  # taken up again from an older checkpoint
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
        """Time to the last step at the present speed; None before there is any."""
        recent = [step.metrics["seconds"] for step in self.steps[-RATE_STEPS:] if "seconds" in step.metrics]
        if not recent or self.run is None:
            return None
        return (self.num_steps - self.step) * sum(recent) / len(recent)


def watch(client: Client, run_id: str, *, as_json: bool = False) -> int:
    """Show progress until the run ends or Ctrl-C; returns the exit code. The run itself is left alone."""
    progress = Progress(run_id)
    with Interrupts() as interrupts, view(progress, as_json) as draw:
        while not interrupts.requested:
            progress.refresh(client)
            draw()
            if progress.run is not None and progress.run.has_ended:
                return ended_code(progress.run)
            interrupts.sleep(POLL_SECONDS)
    return EXIT_INTERRUPTED


def ended_code(run: Run) -> int:
    """The exit code for a run that has ended."""
    return {"succeeded": EXIT_OK, "stopped": EXIT_STOPPED}.get(run.state, EXIT_FAILED)


@contextmanager
def view(
    progress: Progress, as_json: bool = False, footer: str = "Ctrl-C leaves the run alone"
) -> Iterator[Callable[[], None]]:
    """A way to draw `progress` that fits where standard output goes; call what it yields after every refresh."""
    if as_json or not sys.stdout.isatty():
        yield (_JsonLines if as_json else PlainLines)(progress).draw
        return
    from rich.live import Live

    from turnout.cli.views.watch_view import render

    with Live(console=console(), refresh_per_second=4, transient=False) as live:
        yield lambda: live.update(render(progress, footer))


class PlainLines:
    """One line for every step, evaluation and change of state."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._step = 0
        self._num_evaluations = 0
        self._num_notes = 0
        self._state = ""
        self._waiting = ""

    def draw(self) -> None:
        progress = self.progress
        ended = progress.run is not None and progress.run.has_ended
        if not ended:
            self._say_state()
        for note in progress.notes[self._num_notes :]:
            self.say(note_text(note))
        self._num_notes = len(progress.notes)
        for item in progress.evaluations[self._num_evaluations :]:
            self.say(evaluation_text(item))
        self._num_evaluations = len(progress.evaluations)
        self._step = min(self._step, progress.step)
        for step in progress.steps:
            if step.step > self._step:
                self.say(self._step_text(step))
        self._step = progress.step
        if ended:
            self._say_state()
        elif not progress.steps:
            self._say_waiting()

    def _say_state(self) -> None:
        state = f"not reachable: {self.progress.fault}" if self.progress.fault else self._state_text()
        if state != self._state:
            self._state = state
            self.say(state)

    def say(self, text: str) -> None:
        say(f"{time.strftime('%H:%M:%S')}  {text}")

    def _state_text(self) -> str:
        run = self.progress.run
        if run is None:
            return "asking the API"
        return f"{run.name} ({run.id}) is {run.state}{': ' + run.reason if run.reason else ''}"

    def _say_waiting(self) -> None:
        """Before the first step: what the services are busy with, whenever that changes."""
        waiting = "; ".join(f"{item.instance} {service_text(item)}" for item in self.progress.services)
        if waiting != self._waiting:
            self._waiting = waiting
            self.say(waiting)

    def _step_text(self, step: Step) -> str:
        parts = [f"step {step.step}/{self.progress.num_steps}"]
        parts += [
            f"{label} {form.format(step.metrics[name])}" for label, name, form in PLAIN_METRICS if name in step.metrics
        ]
        left = self.progress.seconds_left
        return "  ".join([*parts, f"left {duration(left)}"] if left is not None else parts)


class _JsonLines:
    """One JSON object a line: {"run": ...}, {"step": ...}, {"evaluation": ...} or {"note": ...}."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._step = 0
        self._num_evaluations = 0
        self._num_notes = 0
        self._state = ""

    def draw(self) -> None:
        progress = self.progress
        if progress.run is not None and progress.run.state != self._state:
            self._state = progress.run.state
            self._say({"run": progress.run})
        for note in progress.notes[self._num_notes :]:
            self._say({"note": note})
        self._num_notes = len(progress.notes)
        for item in progress.evaluations[self._num_evaluations :]:
            self._say({"evaluation": item})
        self._num_evaluations = len(progress.evaluations)
        self._step = min(self._step, progress.step)
        for step in progress.steps:
            if step.step > self._step:
                self._say({"step": step})
        self._step = progress.step

    def _say(self, value: object) -> None:
        say_json(value)


def evaluation_text(item: Evaluation) -> str:
    """One evaluation in a line."""
    when = "before training" if item.step == 0 else f"after step {item.step}"
    return (
        f"evaluation {when}: avg@{item.num_samples} {item.accuracy:.1%}, pass@{item.num_samples} {item.pass_at_k:.1%} "
        f"on {item.num_questions} {item.split} questions"
    )


def note_text(note: dict[str, Any]) -> str:
    """A note in a line."""
    return in_line(f"{note.get('level', 'info')}: {note.get('source', '')}: {note.get('text', '')}")


def service_text(service: Service) -> str:
    """A service's state and what it waits for."""
    return f"{service.state}, waits for {service.waiting_for}" if service.waiting_for else service.state

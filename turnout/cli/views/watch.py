"""`turnout runs watch`: a run's progress until it ends, as a live view in a terminal and as plain lines elsewhere.

Once a second it requests the run's events after the last one seen (Last-Event-ID), so an API restart, a lost connection
or a sleeping laptop only pauses the view.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.contracts.records import Run, Step
from services.contracts.step_metrics import STEP_METRICS
from turnout.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED
from turnout.cli.interrupts import Interrupts
from turnout.cli.output import duration
from turnout.cli.terminal import console, say, say_json
from turnout.cli.views.progress import News, Progress, evaluation_text, note_text, service_text
from turnout.client.client import Client

POLL_SECONDS = 1.0


def watch(client: Client, run_id: str, *, as_json: bool = False) -> int:
    """Show progress until the run ends or Ctrl-C is pressed. Returns the exit code. The run itself is not affected."""
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
    progress: Progress, as_json: bool = False, footer: str = "Ctrl-C does not stop the run"
) -> Iterator[Callable[[], None]]:
    """A function that draws `progress` on standard output; call it after every refresh."""
    if as_json or not sys.stdout.isatty():
        yield (_JsonLines if as_json else PlainLines)(progress).draw
        return
    from rich.live import Live

    from turnout.cli.views.live import render

    with Live(console=console(), refresh_per_second=4, transient=False) as live:
        yield lambda: live.update(render(progress, footer))


class PlainLines:
    """One line for every step, evaluation, note and change of state."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._news = News(progress)
        self._said = ""
        self._waiting = ""

    def draw(self) -> None:
        progress = self.progress
        ended = progress.run is not None and progress.run.has_ended
        if not ended:
            self._say_state()
        notes, evaluations, steps = self._news.take()
        for text in (*map(note_text, notes), *map(evaluation_text, evaluations), *map(self._step_text, steps)):
            self.say(text)
        if ended:
            self._say_state()
        elif not progress.steps:
            self._say_waiting()

    def _say_state(self) -> None:
        state = f"not reachable: {self.progress.fault}" if self.progress.fault else self._state_text()
        if state != self._said:
            self._said = state
            self.say(state)

    def say(self, text: str) -> None:
        say(f"{time.strftime('%H:%M:%S')}  {text}")

    def _state_text(self) -> str:
        run = self.progress.run
        if run is None:
            return "asking the API"
        return f"{run.name} ({run.id}) is {run.state}{': ' + run.reason if run.reason else ''}"

    def _say_waiting(self) -> None:
        """Before the first step: say what the services are waiting for, whenever that changes."""
        waiting = "; ".join(f"{item.instance} {service_text(item)}" for item in self.progress.services)
        if waiting != self._waiting:
            self._waiting = waiting
            self.say(waiting)

    def _step_text(self, step: Step) -> str:
        parts = [f"step {step.step}/{self.progress.num_steps}"]
        parts += [
            f"{metric.watch} {step.metrics[name]:{metric.form}}"
            for name, metric in STEP_METRICS.items()
            if metric.watch and name in step.metrics
        ]
        left = self.progress.seconds_left
        return "  ".join([*parts, f"left {duration(left)}"] if left is not None else parts)


class _JsonLines:
    """One JSON object per line: {"run": ...}, {"step": ...}, {"evaluation": ...} or {"note": ...}."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._news = News(progress)
        self._state = ""

    def draw(self) -> None:
        run = self.progress.run
        if run is not None and run.state != self._state:
            self._state = run.state
            say_json({"run": run})
        notes, evaluations, steps = self._news.take()
        for item in (
            *({"note": note} for note in notes),
            *({"evaluation": evaluation} for evaluation in evaluations),
            *({"step": step} for step in steps),
        ):
            say_json(item)

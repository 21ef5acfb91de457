"""An experiment's progress: an overview that is redrawn in a terminal, one line per change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from statistics import fmean

from services.contracts.errors import UnavailableError
from services.contracts.plain_text import in_line
from services.contracts.records import Experiment, ExperimentRun
from services.contracts.states import ACTIVE_STATES
from turnout.cli.interrupts import Interrupts
from turnout.cli.output import duration
from turnout.cli.terminal import console, say, say_json
from turnout.client.client import Client

POLL_SECONDS = 2.0


def watch(client: Client, experiment_id: str, *, as_json: bool = False) -> Experiment | None:
    """Show progress until the experiment ends; None if the user interrupts. The experiment itself is not affected."""
    from rich.live import Live
    from rich.text import Text

    lines = _Lines(as_json)
    live = Live(console=console(), auto_refresh=False) if sys.stdout.isatty() and not as_json else None
    with Interrupts() as interrupts:
        if live is not None:
            live.start()
        try:
            while not interrupts.requested:
                try:
                    found = client.experiment(experiment_id)
                except UnavailableError as error:
                    lines.fault(error.message)
                    interrupts.sleep(POLL_SECONDS)
                    continue
                if live is not None:
                    live.update(Text("\n".join(map(in_line, overview_lines(found)))), refresh=True)
                else:
                    lines.draw(found)
                if found.state != "running":
                    return found
                interrupts.sleep(POLL_SECONDS)
        finally:
            if live is not None:
                live.stop()
    return None


def overview_lines(found: Experiment) -> list[str]:
    """State and progress, a line per method, a line per active run."""
    width = max((len(run.method) for run in found.runs), default=6) + 2
    lines = [headline(found), ""]
    lines.append(f"{'method':{width}}{'tuning':>8}{'final':>8}  {'newest accuracy':>16}  chosen")
    for method in dict.fromkeys(run.method for run in found.runs):
        own = [run for run in found.runs if run.method == method]
        finals = [run for run in own if run.phase == "final"]
        shown = [run.accuracy for run in finals or own if run.accuracy is not None]
        mean = f"{fmean(shown):.1%}" if shown else "-"
        chosen = _values((found.chosen or {}).get(method)) or "-"
        tuning, final = (_ended(own, phase) for phase in ("tuning", "final"))
        lines.append(f"{method:{width}}{tuning:>8}{final:>8}  {mean:>16}  {chosen}")
    active = [run for run in found.runs if run.state in ACTIVE_STATES or run.state == "queued"]
    lines += ["", *(_run_line(run) for run in active)] if active else []
    failed = [run for run in found.runs if run.state == "failed"]
    lines += [f"failed: {run.run_id} ({_cell(run)})" for run in failed]
    return lines


def headline(found: Experiment) -> str:
    """The experiment's state in a line, with the time left."""
    ended = sum(run.state in ("succeeded", "failed") for run in found.runs)
    text = f"{found.id}  {found.name}: {found.state}, {ended} of {found.num_runs} runs ended"
    if found.seconds_left is not None:
        text += f", about {duration(found.seconds_left)} left"
    return text + (f"; {found.reason}" if found.reason else "")


def _ended(runs: list[ExperimentRun], phase: str) -> str:
    own = [run for run in runs if run.phase == phase]
    return f"{sum(run.state in ('succeeded', 'failed') for run in own)}/{len(own)}" if own else "-"


def _values(values: dict[str, object] | None) -> str:
    return ", ".join(f"{field.rpartition('.')[2]} {value}" for field, value in (values or {}).items())


def _cell(run: ExperimentRun) -> str:
    values = _values(run.values)
    return f"{run.phase}, {run.method}{', ' + values if values else ''}, seed {run.seed}"


def _run_line(run: ExperimentRun) -> str:
    accuracy = f", accuracy {run.accuracy:.1%}" if run.accuracy is not None else ""
    return f"{run.state} {run.run_id} ({_cell(run)}): step {run.step}/{run.num_steps}{accuracy}"


class _Lines:
    """One line, or JSON object, for each run that starts or ends and for each change of the experiment."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._states: dict[str, str | None] = {}
        self._state = ""
        self._fault = ""

    def fault(self, message: str) -> None:
        """Print once that the API does not answer."""
        if message != self._fault and not self.as_json:
            self._say(f"the API does not answer: {message}")
        self._fault = message

    def draw(self, found: Experiment) -> None:
        self._fault = ""
        for run in self._changed(found):
            if self.as_json:
                say_json({"run": run})
            else:
                self._say(_run_line(run))
        if found.state != self._state:
            self._state = found.state
            if self.as_json:
                say_json({"experiment": {"id": found.id, "state": found.state, "reason": found.reason}})
            else:
                self._say(headline(found))

    def _changed(self, found: Experiment) -> Iterator[ExperimentRun]:
        for run in found.runs:
            if run.state != self._states.get(run.cell):
                self._states[run.cell] = run.state
                yield run

    def _say(self, text: str) -> None:
        say(f"{time.strftime('%H:%M:%S')}  {text}")

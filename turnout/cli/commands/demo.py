"""`turnout demo`: starts all services on one machine, runs a training over REST, writes a report and stops everything.

Nothing is left running in any case. The first Ctrl-C stops the run with a checkpoint, within a bounded time; a second
one stops it immediately. Either way `turnout demo --resume` can resume the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from services.contracts.errors import ConflictError, NotFoundError, TurnoutError, UnavailableError
from services.contracts.records import Run
from turnout.cli.exits import EXIT_INTERRUPTED, EXIT_OK
from turnout.cli.interrupts import Interrupts
from turnout.cli.local.home import private_files
from turnout.cli.local.launcher import TICK_SECONDS, Deployment
from turnout.cli.local.plan import make_plan, working_folder
from turnout.cli.local.processes import alive, end_home, find, read_state
from turnout.cli.local.supervisor import StartFailedError, last_words
from turnout.cli.output import duration
from turnout.cli.run_data import collect
from turnout.cli.run_file import load_run
from turnout.cli.terminal import say
from turnout.cli.views import corrections
from turnout.cli.views.progress import Progress
from turnout.cli.views.report import headline, report_folder, write_report
from turnout.cli.views.watch import POLL_SECONDS, ended_code, view
from turnout.client.client import Client

API_SECONDS = 180.0
"""Timeout for the API to answer."""
STOP_SECONDS = 90.0
"""Timeout for the checkpoint of a graceful stop."""
MAX_RESTARTS = 5
"""A service that has died this many times will not recover."""


class Interrupted(Exception):
    """A stop was requested while the demo was waiting."""


class Demo:
    """One demo from start to finish."""

    def __init__(self, home: Path, *, file: Path | None, settings: list[str], as_json: bool) -> None:
        self.home = home.resolve()
        self.file = file or working_folder() / "examples" / "runs" / "demo.yaml"
        self.settings = settings
        self.as_json = as_json
        self.run_id = ""

    def run(self, *, resume: bool) -> int:
        """Run the demo. Returns the exit code: 0 only if the run succeeded. Raises `TurnoutError`."""
        began = time.monotonic()
        body = None if resume else load_run(self.file, self.settings)
        if resume and not (self.home / "runs").is_dir():
            raise self._nothing_to_resume()
        self._clear_leftovers()
        deployment = Deployment(make_plan(self.home, api_port=0))
        with Interrupts() as interrupts:
            try:
                self.say("Starting the queue server, API, verifier, rollout server and learner ...")
                deployment.start()
                with Client(deployment.plan.api_url) as client:
                    return self._conduct(deployment, client, interrupts, body)
            except Interrupted:
                self.say("Interrupted before the run was started.")
                return EXIT_INTERRUPTED
            finally:
                self.say("Stopping all services ...")
                deployment.stop(grace_seconds=2 if interrupts.urgent else 20)
                self.say(f"All services have stopped. The demo took {duration(time.monotonic() - began)}.")

    def say(self, text: str) -> None:
        if not self.as_json:
            say(text)

    def _conduct(
        self, deployment: Deployment, client: Client, interrupts: Interrupts, body: dict[str, object] | None
    ) -> int:
        self._wait(deployment, interrupts, client.ready, API_SECONDS, "the API to answer")
        self.say(f"API and page: {client.url}")
        run = self._take_up(deployment, client, interrupts) if body is None else self._begin(client, body)
        self.run_id = run.id
        progress = Progress(run.id)
        with view(progress, self.as_json, footer="Ctrl-C stops with a checkpoint") as draw:
            self._follow(deployment, client, interrupts, progress, draw)
            if not _ended(progress) and interrupts.requested:
                self._stop_gracefully(deployment, client, interrupts, progress, draw)
        return self._conclude(client, progress, interrupts)

    def _begin(self, client: Client, body: dict[str, object]) -> Run:
        """Start a new run. Runs of earlier demos that are still queued are stopped."""
        for run in client.runs():
            if not run.has_ended:
                client.stop(run.id, now=True)
        return client.create_run(body)

    def _take_up(self, deployment: Deployment, client: Client, interrupts: Interrupts) -> Run:
        """Resume the newest run that did not succeed."""
        runs = [run for run in client.runs() if run.state != "succeeded"]
        if not runs:
            raise self._nothing_to_resume()
        newest = runs[0].id
        if client.run(newest).state == "stopping":
            self._wait(
                deployment, interrupts, lambda: client.run(newest).state != "stopping", STOP_SECONDS, "the run to stop"
            )
        run = client.run(newest)
        return client.resume(run.id) if run.has_ended or run.state == "paused" else run

    def _wait(
        self, deployment: Deployment, interrupts: Interrupts, done: Callable[[], bool], seconds: float, what: str
    ) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if interrupts.requested:
                raise Interrupted
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"Timed out after {seconds:.0f} s waiting for {what}.",
                    remedy=f"See the logs in {deployment.plan.logs}.",
                )
            self._tick(deployment)
            interrupts.sleep(TICK_SECONDS)

    def _tick(self, deployment: Deployment) -> None:
        deployment.tick()
        for running in deployment.supervisor.children:
            if running.num_restarts >= MAX_RESTARTS:
                raise StartFailedError(
                    f"The service {running.child.instance} has died {MAX_RESTARTS} times: {last_words(running)}",
                    remedy=f"Its log is {running.log}.",
                )

    def _follow(
        self,
        deployment: Deployment,
        client: Client,
        interrupts: Interrupts,
        progress: Progress,
        draw: Callable[[], None],
    ) -> None:
        """Show progress until the run has ended or a stop is requested."""
        asked_at = 0.0
        while not interrupts.requested:
            self._tick(deployment)
            if time.monotonic() - asked_at >= POLL_SECONDS:
                asked_at = time.monotonic()
                progress.refresh(client)
                draw()
                if _ended(progress):
                    return
            interrupts.sleep(TICK_SECONDS)

    def _stop_gracefully(
        self,
        deployment: Deployment,
        client: Client,
        interrupts: Interrupts,
        progress: Progress,
        draw: Callable[[], None],
    ) -> None:
        """Request a stop with a checkpoint and wait for it, but at most `STOP_SECONDS` or until a second Ctrl-C."""
        self.say("Stopping with a checkpoint; press Ctrl-C again to stop immediately ...")
        deadline = time.monotonic() + STOP_SECONDS
        asked = False
        while not interrupts.urgent and time.monotonic() < deadline:
            try:
                if not asked:
                    client.stop(progress.run_id)
                    asked = True
                deployment.tick()
                progress.refresh(client)
            except ConflictError:
                asked = True  # it has just ended on its own
            except UnavailableError:
                pass  # the API may be restarting; the deadline bounds this
            except TurnoutError as error:
                self.say(f"The run could not be stopped gracefully: {error}")
                return
            draw()
            if _ended(progress):
                return
            interrupts.sleep(TICK_SECONDS)

    def _conclude(self, client: Client, progress: Progress, interrupts: Interrupts) -> int:
        """Write the report, print the outcome, and return the exit code."""
        run = progress.run
        if interrupts.requested and (run is None or run.state != "succeeded"):
            self.say(f"To resume run {progress.run_id}, use `turnout demo --resume{self._home_option()}`.")
            return EXIT_INTERRUPTED
        assert run is not None
        data = collect(client, run.id)
        with private_files():
            folder = write_report(data, report_folder(self.home, run.id), corrections.find(client, run))
        self.say(headline(data))
        if run.reason:
            self.say(run.reason)
        self.say(f"Report: {folder / 'report.html'}")
        return EXIT_OK if run.state == "succeeded" else ended_code(run)

    def _nothing_to_resume(self) -> NotFoundError:
        return NotFoundError(
            f"There is no interrupted demo run in {self.home}.", remedy="Start a new one with `turnout demo`."
        )

    def _home_option(self) -> str:
        return "" if self.home == Path(".turnout/demo").resolve() else f" --home {self.home}"

    def _clear_leftovers(self) -> None:
        """Stop what an earlier demo left running because it was killed."""
        state = read_state(self.home)
        if state is not None and find(state.supervisor) is None and alive(state):
            self.say("Stopping what an earlier demo left running ...")
            end_home(self.home)


def _ended(progress: Progress) -> bool:
    return progress.run is not None and progress.run.has_ended

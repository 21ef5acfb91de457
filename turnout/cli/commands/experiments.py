"""`turnout experiment FILE` and `turnout experiments ...`: methods compared over seeds, with tuned settings."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from turnout.cli.options import ExperimentFile, ExperimentId, Json, Url, examples

if TYPE_CHECKING:
    from services.contracts.records import Experiment
    from turnout.client.client import Client

app = typer.Typer(
    help="List, watch, control and report experiments; `turnout experiment FILE` starts one.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Out = Annotated[Path | None, typer.Option(help="Folder for the report; by default .turnout/experiments/<id>.")]


def experiment(
    file: ExperimentFile,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the experiment has started.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Start another experiment even if this file has been run before.")
    ] = False,
    out: Out = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Run an experiment, or continue watching it: tune each method, run the final seeds, write a report.

    The same file names the same experiment: calling the command again, after Ctrl-C or any restart, continues it.
    """
    from turnout.cli import output
    from turnout.client.client import Client

    values = read_values(file)
    digest = hashlib.sha256(msgspec.json.encode(values, order="deterministic")).hexdigest()
    with Client(api_url) as client:
        made = client.create_experiment(values, idempotency_key=None if again else f"experiment-{digest}")
        if detach:
            output.show(made, as_json, f"{made.id}  {made.name}: {made.state}")
            return
        raise typer.Exit(_watch(client, made.id, out, as_json))


def read_values(file: Path) -> dict[str, Any]:
    """The checked values of an experiment file. Raises `ConfigurationError` with file and field."""
    from services.contracts.errors import ConfigurationError
    from services.contracts.experiments.experiment import parse_experiment
    from turnout.cli.run_file import read_run_file

    read = read_run_file(file)
    try:
        parse_experiment(read.values)
    except ConfigurationError as error:
        place = read.place(tuple(error.field.split("."))) if error.field else str(file)
        raise ConfigurationError(f"{place}: {error.message}", remedy=error.remedy, field=error.field) from error
    return read.values


@app.command(epilog=examples("turnout experiments check examples/experiments/embedded.yaml"))
def check(file: ExperimentFile, as_json: Json = False) -> None:
    """Check an experiment file and each of its runs without an API, and count its runs and steps."""
    from services.contracts.experiments.experiment import Cell, num_runs, parse_experiment, run_config, tuning_cells
    from turnout.cli import output

    found = parse_experiment(read_values(file))
    tuning = tuning_cells(found)
    finals = [Cell.of("final", method, 0, seed) for method in found.methods for seed in found.final.seeds]
    steps = sum(run_config(found, cell).training.steps for cell in (*tuning, *finals))
    text = (
        f"{file} is valid: {len(found.methods)} methods, {len(tuning)} tuning runs and {len(finals)} final runs, "
        f"{steps} steps in total."
    )
    output.show({"methods": list(found.methods), "num_runs": num_runs(found), "num_steps": steps}, as_json, text)


@app.command("list", epilog=examples("turnout experiments list"))
def list_experiments(as_json: Json = False, api_url: Url = None) -> None:
    """List experiments, newest first."""
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        items = client.experiments()
    if as_json or not items:
        output.show(items, as_json, "No experiments. Start one with `turnout experiment FILE`.")
        return
    output.print_table(["id", "name", "state", "reason"], [[i.id, i.name, i.state, i.reason] for i in items])


@app.command(epilog=examples("turnout experiments show embedded-3f"))
def show(experiment_id: ExperimentId, as_json: Json = False, api_url: Url = None) -> None:
    """Show one experiment: its methods, what tuning chose, its runs."""
    from turnout.cli import output
    from turnout.cli.views.experiment import overview_lines
    from turnout.client.client import Client

    with Client(api_url) as client:
        found = client.experiment(full_experiment_id(client, experiment_id))
    output.show(found, as_json, "\n".join(overview_lines(found)))


@app.command(epilog=examples("turnout experiments watch embedded-3f"))
def watch(experiment_id: ExperimentId, out: Out = None, as_json: Json = False, api_url: Url = None) -> None:
    """Show an experiment's progress until it ends, then write its report. Ctrl-C does not stop the experiment."""
    from turnout.client.client import Client

    with Client(api_url) as client:
        raise typer.Exit(_watch(client, full_experiment_id(client, experiment_id), out, as_json))


@app.command(epilog=examples("turnout experiments stop embedded-3f"))
def stop(experiment_id: ExperimentId, as_json: Json = False, api_url: Url = None) -> None:
    """Stop an experiment's runs, each with a checkpoint, and start no more."""
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        found = client.stop_experiment(full_experiment_id(client, experiment_id))
    output.show(found, as_json, f"{found.id}  {found.name}: {found.state}")


@app.command(epilog=examples("turnout experiments resume embedded-3f"))
def resume(experiment_id: ExperimentId, as_json: Json = False, api_url: Url = None) -> None:
    """Continue a stopped or failed experiment; its stopped and failed runs resume from their checkpoints."""
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        found = client.resume_experiment(full_experiment_id(client, experiment_id))
    output.show(found, as_json, f"{found.id}  {found.name}: {found.state}")


@app.command(epilog=examples("turnout experiments delete embedded-3f"))
def delete(experiment_id: ExperimentId, as_json: Json = False, api_url: Url = None) -> None:
    """Delete an experiment that is not running. Its runs stay."""
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        found = full_experiment_id(client, experiment_id)
        client.delete_experiment(found)
    output.show({"deleted": found}, as_json, f"Deleted {found}; its runs stay.")


@app.command(epilog=examples("turnout experiments report embedded-3f --out report"))
def report(experiment_id: ExperimentId, out: Out = None, as_json: Json = False, api_url: Url = None) -> None:
    """Write the report of an experiment, from the final runs that have succeeded so far."""
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        folder = _report(client, client.experiment(full_experiment_id(client, experiment_id)), out)
    output.show({"folder": str(folder)}, as_json, str(folder / "report.html"))


def full_experiment_id(client: Client, beginning: str) -> str:
    """The id of the only experiment with this beginning. Raises `NotFoundError`, or `ConfigurationError` if there are
    several."""
    from services.contracts.errors import ConfigurationError, NotFoundError

    found = [item.id for item in client.experiments() if item.id.startswith(beginning)]
    if beginning in found:
        return beginning
    if not found:
        raise NotFoundError(
            f"No experiment's id begins with {beginning!r}.", remedy="`turnout experiments list` lists all experiments."
        )
    if len(found) > 1:
        raise ConfigurationError(
            f"{len(found)} experiments' ids begin with {beginning!r}: {', '.join(found[:5])}.",
            remedy="Give more characters of the id.",
        )
    return found[0]


def _watch(client: Client, experiment_id: str, out: Path | None, as_json: bool) -> int:
    from turnout.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED
    from turnout.cli.terminal import say
    from turnout.cli.views.experiment import watch as watch_experiment

    ended = watch_experiment(client, experiment_id, as_json=as_json)
    if ended is None:
        return EXIT_INTERRUPTED
    if ended.state == "succeeded":
        folder = _report(client, ended, out)
        if not as_json:
            say(f"report: {folder / 'report.html'}")
        return EXIT_OK
    return EXIT_STOPPED if ended.state == "stopped" else EXIT_FAILED


def _report(client: Client, found: Experiment, out: Path | None) -> Path:
    from turnout.cli.views.experiment_report import write_report

    return write_report(found, client.experiment_results(found.id), out or Path(".turnout/experiments") / found.id)

"""`turnout experiment FILE` and `turnout experiments ...`: methods compared over seeds, with tuned settings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from turnout.cli.options import (
    ExperimentFiles,
    ExperimentId,
    GpuKind,
    Gpus,
    Json,
    ResponseTokens,
    Settings,
    Url,
    examples,
)

if TYPE_CHECKING:
    from services.contracts.experiments.experiment import ExperimentConfig, Phase
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
    files: ExperimentFiles,
    settings: Settings = None,
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
    Further files and --set are part of it: what they result in is stored, with its digest, before the first run.
    """
    from turnout.cli import output
    from turnout.client.client import Client

    values = read_values(files, settings or ())
    digest = hashlib.sha256(msgspec.json.encode(values, order="deterministic")).hexdigest()
    with Client(api_url) as client:
        made = client.create_experiment(values, idempotency_key=None if again else f"experiment-{digest}")
        if detach:
            output.show(made, as_json, f"{made.id}  {made.name}: {made.state}")
            return
        raise typer.Exit(_watch(client, made.id, out, as_json))


def read_values(files: Sequence[Path], settings: Sequence[str] = ()) -> dict[str, Any]:
    """The checked values of experiment files, each laid over those before it, with `settings` ("a.b=value") applied.

    Raises:
        ConfigurationError: with file and field.
    """
    from services.contracts.errors import ConfigurationError
    from services.contracts.experiments.experiment import parse_experiment
    from services.contracts.run_config import merge
    from services.contracts.run_file import ParsedRunFile, place_in
    from turnout.cli.run_file import apply_setting, changes_of, read_run_file

    read = [read_run_file(file) for file in files]
    result = ParsedRunFile("--set", reduce(merge, (file.values for file in read)))
    for setting in settings:
        apply_setting(result, setting)
    try:
        parse_experiment(result.values)
    except ConfigurationError as error:
        layers = [*read, ParsedRunFile("--set", changes_of(settings))]
        place = place_in(layers, tuple(error.field.split("."))) if error.field else " and ".join(map(str, files))
        raise ConfigurationError(f"{place}: {error.message}", remedy=error.remedy, field=error.field) from error
    return result.values


@app.command(
    epilog=examples(
        "turnout experiments check examples/experiments/embedded.yaml",
        "turnout experiments check examples/experiments/embedded.yaml --set final.seeds=[1,2,3]",
        "turnout experiments check my.yaml --gpus 8 --gpu h100 --response-tokens 700",
    )
)
def check(
    files: ExperimentFiles,
    settings: Settings = None,
    gpus: Gpus = None,
    gpu: GpuKind = None,
    response_tokens: ResponseTokens = None,
    as_json: Json = False,
) -> None:
    """Check an experiment file, each of its runs and the rows of its data without an API; count its runs and steps.

    With --gpus and --gpu, say what memory, hours and disk it needs, by formula; this reads the model's config.json.
    """
    from services.contracts import pace
    from services.contracts.errors import ConfigurationError
    from services.contracts.experiments.experiment import parse_experiment
    from services.contracts.experiments.forecast import forecast
    from turnout.cli import output
    from turnout.cli.views import forecast as view

    found = parse_experiment(read_values(files, settings or ()))
    if (gpus is None) != (gpu is None):
        raise ConfigurationError(
            "--gpus and --gpu are needed together.", remedy="Give both, for example --gpus 8 --gpu h100."
        )
    sizes, text, num_questions = _checked(found)
    needed = []
    if gpus is not None and gpu is not None:
        needed = forecast(found, pace.kind_of(gpu), gpus, response_tokens, num_questions)
    text = f"{' with '.join(map(str, files))}: valid. {text}"
    output.show(sizes | ({"forecast": view.values(needed)} if needed else {}), as_json, text)
    if needed and not as_json:
        view.show_forecast(needed, f"{gpus} x {gpu}")


def _checked(found: ExperimentConfig) -> tuple[dict[str, Any], str, dict[Phase, int | None]]:
    """Sizes, the same and the rows checked in words, and validation questions by phase. Raises `ConfigurationError`."""
    from services.contracts.experiments.experiment import Cell, num_runs, run_config, tuning_cells
    from turnout.cli.run_file import check_rows, count_questions

    tuning = tuning_cells(found)
    finals = [Cell.of("final", method, 0, seed) for method in found.methods for seed in found.final.seeds]
    steps = sum(run_config(found, cell).training.steps for cell in (*tuning, *finals))
    first = {cell.phase: run_config(found, cell) for cell in (*tuning[:1], *finals[:1])}
    rows = dict.fromkeys(line for config in first.values() for line in check_rows(config))
    plural = "s" if len(found.methods) > 1 else ""
    runs = f"{len(tuning)} tuning runs and {len(finals)} final runs, {steps} steps in total."
    counts = f"{len(found.methods)} method{plural}, {runs}"
    sizes = {"methods": list(found.methods), "num_runs": num_runs(found), "num_steps": steps}
    return sizes, "\n".join([counts, *rows]), {phase: count_questions(config) for phase, config in first.items()}


@app.command("list", epilog=examples("turnout experiments list"))
def list_experiments(
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many experiments.")] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """List experiments, newest first."""
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        items = client.experiments(limit=limit)
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
    from turnout.client.run_ids import full_experiment_id

    with Client(api_url) as client:
        found = client.experiment(full_experiment_id(client, experiment_id))
    output.show(found, as_json, "\n".join(overview_lines(found)))


@app.command(epilog=examples("turnout experiments watch embedded-3f"))
def watch(experiment_id: ExperimentId, out: Out = None, as_json: Json = False, api_url: Url = None) -> None:
    """Show an experiment's progress until it ends, then write its report. Ctrl-C does not stop the experiment."""
    from turnout.client.client import Client
    from turnout.client.run_ids import full_experiment_id

    with Client(api_url) as client:
        raise typer.Exit(_watch(client, full_experiment_id(client, experiment_id), out, as_json))


@app.command(epilog=examples("turnout experiments stop embedded-3f"))
def stop(experiment_id: ExperimentId, as_json: Json = False, api_url: Url = None) -> None:
    """Stop an experiment's runs, each with a checkpoint, and start no further ones."""
    from turnout.cli import output
    from turnout.client.client import Client
    from turnout.client.run_ids import full_experiment_id

    with Client(api_url) as client:
        found = client.stop_experiment(full_experiment_id(client, experiment_id))
    output.show(found, as_json, f"{found.id}  {found.name}: {found.state}")


@app.command(epilog=examples("turnout experiments resume embedded-3f"))
def resume(experiment_id: ExperimentId, as_json: Json = False, api_url: Url = None) -> None:
    """Continue a stopped or failed experiment; its stopped and failed runs resume from their checkpoints."""
    from turnout.cli import output
    from turnout.client.client import Client
    from turnout.client.run_ids import full_experiment_id

    with Client(api_url) as client:
        found = client.resume_experiment(full_experiment_id(client, experiment_id))
    output.show(found, as_json, f"{found.id}  {found.name}: {found.state}")


@app.command(epilog=examples("turnout experiments delete embedded-3f"))
def delete(experiment_id: ExperimentId, as_json: Json = False, api_url: Url = None) -> None:
    """Delete an experiment that is not running. Its runs stay."""
    from turnout.cli import output
    from turnout.client.client import Client
    from turnout.client.run_ids import full_experiment_id

    with Client(api_url) as client:
        found = full_experiment_id(client, experiment_id)
        client.delete_experiment(found)
    output.show({"deleted": found}, as_json, f"Deleted {found}; its runs stay.")


@app.command(epilog=examples("turnout experiments report embedded-3f --out report"))
def report(experiment_id: ExperimentId, out: Out = None, as_json: Json = False, api_url: Url = None) -> None:
    """Write the report of an experiment, from the final runs that have succeeded so far."""
    from turnout.cli import output
    from turnout.client.client import Client
    from turnout.client.run_ids import full_experiment_id

    with Client(api_url) as client:
        folder = _report(client, client.experiment(full_experiment_id(client, experiment_id)), out)
    output.show({"folder": str(folder)}, as_json, str(folder / "report.html"))


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

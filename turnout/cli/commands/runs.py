"""`turnout runs ...`: every action of the REST API from a terminal."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turnout.cli.commands.history import app as history
from turnout.cli.commands.push import app as push
from turnout.cli.commands.teachers import app as teachers
from turnout.cli.options import (
    File,
    GpuKind,
    Gpus,
    Id,
    Ids,
    Json,
    Key,
    Preset,
    Priority,
    ResponseTokens,
    Settings,
    Url,
    Watch,
    examples,
)

if TYPE_CHECKING:
    from turnout.client.client import Client

app = typer.Typer(
    help="Start, watch, control and compare runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command(
    epilog=examples(
        "turnout runs start examples/runs/demo.yaml --watch",
        "turnout runs start my.yaml --preset paper-srpo --set training.steps=50 --set name=short",
    )
)
def start(
    file: File,
    settings: Settings = None,
    preset: Preset = None,
    priority: Priority = 0,
    watch_it: Watch = False,
    idempotency_key: Key = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Check a run file and start it."""
    from turnout.cli import output
    from turnout.cli.run_file import load_run
    from turnout.client.client import Client

    body = load_run(file, _with_preset(settings, preset))
    with Client(api_url) as client:
        run = client.create_run(body, priority=priority, idempotency_key=idempotency_key)
        output.show_notices(run.notices)
        if not watch_it:
            output.show(run, as_json, f"{run.id}  {run.name}: {run.state}")
            return
        raise typer.Exit(_watch(client, run.id, as_json))


@app.command(epilog=examples("turnout runs check my.yaml", "turnout runs check my.yaml --set training.steps=50 --json"))
def check(file: File, settings: Settings = None, preset: Preset = None, as_json: Json = False) -> None:
    """Check a run file and the rows of its data, without an API; --json prints it with every default filled in."""
    from services.contracts.notices import notices
    from services.contracts.run_config import parse_run_config
    from turnout.cli import output
    from turnout.cli.run_file import check_rows, load_run

    config = parse_run_config(load_run(file, _with_preset(settings, preset)))
    values = config.model_dump(mode="json")
    steps = f"{config.training.steps} steps of {config.training.prompts_per_step} prompts"
    text = f"{file} is valid: {config.name}, {config.objective.name}, {steps} x {config.rollout.group_size} rollouts."
    text = "\n".join([text, *check_rows(config)])
    output.show(values, as_json, text)
    output.show_notices(notices(values))


@app.command(
    epilog=examples(
        "turnout runs plan my.yaml",
        "turnout runs plan my.yaml --gpus 4 --gpu-memory 80 --response-tokens 1000",
        "turnout runs plan my.yaml --gpus 8 --gpu h100 --response-tokens 1000",
        "turnout runs plan my.yaml --gpus 4 --gpu-memory 80 --train-rate 9000 --sample-rate 20000 --push-rate 5",
    )
)
def plan(
    file: File,
    settings: Settings = None,
    preset: Preset = None,
    gpus: Gpus = None,
    gpu: GpuKind = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=0.001, help="Memory of one GPU in GiB; by default that of --gpu.")
    ] = None,
    response_tokens: ResponseTokens = None,
    train_rate: Annotated[
        float | None, typer.Option(min=0.001, help="Measured: response tokens trained per second and learner process.")
    ] = None,
    sample_rate: Annotated[
        float | None, typer.Option(min=0.001, help="Measured: response tokens sampled per second and server.")
    ] = None,
    push_rate: Annotated[float | None, typer.Option(min=0.001, help="Measured: GB of new weights per second.")] = None,
    as_json: Json = False,
) -> None:
    """Calculate the memory that a run needs, and with --gpus the settings that make it fit; without an API."""
    from services.contracts import pace, planner
    from services.contracts.errors import ConfigurationError
    from services.contracts.run_config import parse_run_config
    from services.contracts.sizing import GIB
    from turnout.cli.run_file import load_run
    from turnout.cli.views.plan import show_plan

    kind = None if gpu is None else pace.kind_of(gpu)
    if kind is not None:
        gpu_memory = gpu_memory or kind.gib
    if (gpus is None) != (gpu_memory is None):
        raise ConfigurationError(
            "--gpus needs --gpu-memory or --gpu, and these need --gpus.",
            remedy="Give both, for example --gpus 4 --gpu-memory 80 or --gpus 4 --gpu h100.",
        )
    config = parse_run_config(load_run(file, _with_preset(settings, preset)))
    machine = None if gpus is None or gpu_memory is None else planner.Gpus(gpus, gpu_memory * GIB)
    found = planner.plan(config, machine, response_tokens)
    rates = planner.Rates(train_rate, sample_rate, None if push_rate is None else push_rate * 1e9)
    times = [planner.times(found, rates, response_tokens)]
    if kind is not None:
        times += pace.times(found, kind, response_tokens)
    show_plan(found, times, machine, as_json)


@app.command(epilog=examples("turnout runs probe my.yaml", "turnout runs probe my.yaml --questions 100 --json"))
def probe(
    file: File,
    settings: Settings = None,
    preset: Preset = None,
    questions: Annotated[int, typer.Option(min=1, max=10_000, help="Training questions to sample.")] = 32,
    steps: Annotated[int, typer.Option(min=1, max=100, help="Training steps to time.")] = 3,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Measure a task before training on it: accuracy, what teaches, the teacher gap, time; with advice in words."""
    from turnout.cli import output
    from turnout.cli.exits import EXIT_OK
    from turnout.cli.run_file import load_run
    from turnout.cli.terminal import say
    from turnout.cli.views.probe import probe_rows
    from turnout.client.client import Client

    body = load_run(file, _with_preset(settings, preset))
    with Client(api_url) as client:
        run = client.create_probe(body, num_questions=questions, steps=steps)
        code = _watch(client, run.id, as_json)
        if code != EXIT_OK:
            raise typer.Exit(code)
        found = client.probe(run.id)
    if as_json:
        output.show(found, True, "")
        return
    output.print_table(["probe", ""], probe_rows(found))
    for sentence in found.advice:
        say(f"- {sentence}")


@app.command(epilog=examples("turnout runs files", "turnout runs files demo.yaml > my.yaml"))
def files(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this file.")] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """List the run files that the deployment ships, or print one to start from."""
    from services.contracts.errors import NotFoundError
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        items = client.run_files()
    if name is None:
        output.show(items, as_json, "\n".join(item.name for item in items) or "The deployment ships no run files.")
        return
    found = next((item for item in items if item.name == name), None)
    if found is None:
        raise NotFoundError(f"There is no run file {name}.", remedy="`turnout runs files` lists all run files.")
    output.show(found, as_json, found.text.rstrip())


@app.command("list", epilog=examples("turnout runs list --state running", "turnout runs list --name demo --sort -step"))
def list_runs(
    state: Annotated[str | None, typer.Option(help="Only runs in this state.")] = None,
    name: Annotated[str | None, typer.Option(help="Only runs whose name contains this.")] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Only runs with this value; can be given several times."),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only runs with this tag; can be given several times.")] = None,
    sort: Annotated[
        str | None, typer.Option(help="created_at, name, state or step; with - in front for descending.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many runs.")] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """List runs, newest first."""
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        runs = client.runs(state=state, name=name, config=config or (), tag=tag or (), sort=sort)
        output.show_runs(list(runs if limit is None else islice(runs, limit)), as_json)


@app.command(epilog=examples("turnout runs show demo-3f"))
def show(run_id: Id, as_json: Json = False, api_url: Url = None) -> None:
    """Show one run: state, newest metrics, evaluations, checkpoints."""
    from turnout.cli import output
    from turnout.cli.run_data import collect
    from turnout.client.run_ids import client_of

    with client_of(api_url, run_id) as (client, found):
        output.show_run(collect(client, found), as_json)


@app.command(
    epilog=examples("turnout runs watch demo-3f", "turnout runs watch demo-3f --json | jq .step.metrics.reward_mean")
)
def watch(run_id: Id, as_json: Json = False, api_url: Url = None) -> None:
    """Show a run's progress until it ends. Survives restarts of the API. Ctrl-C does not stop the run."""
    from turnout.client.run_ids import client_of

    with client_of(api_url, run_id) as (client, found):
        raise typer.Exit(_watch(client, found, as_json))


@app.command(
    epilog=examples(
        "turnout runs change demo-3f --priority 10",
        "turnout runs change demo-3f --tag baseline --tag week-48 --note 'Before the new rewards.'",
    )
)
def change(
    run_id: Id,
    name: Annotated[str | None, typer.Option(help="New name.")] = None,
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, help="Of queued runs, the highest priority starts first.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Replaces all tags; can be given several times, '' for none.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="Replaces the note.")] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Change a run's name, place in the queue, tags or note, in any state."""
    from services.contracts.errors import ConfigurationError
    from turnout.cli import output
    from turnout.client.run_ids import client_of

    if name is None and priority is None and tag is None and note is None:
        raise ConfigurationError("Nothing to change.", remedy="Give --name, --priority, --tag or --note.")
    tags = None if tag is None else [one for one in tag if one]
    with client_of(api_url, run_id) as (client, found):
        run = client.change_run(found, name=name, priority=priority, tags=tags, note=note)
    about = f"priority {run.priority}" + (f", tags {', '.join(run.tags)}" if run.tags else "")
    output.show(run, as_json, f"{run.id}  {run.name}: {run.state}, {about}")


@app.command(epilog=examples("turnout runs stop demo-3f", "turnout runs stop demo-3f --now"))
def stop(
    run_id: Id,
    now: Annotated[bool, typer.Option("--now", help="Stop immediately, without a checkpoint.")] = False,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Stop a run after its current step, with a checkpoint."""
    _act(run_id, lambda client, found: client.stop(found, now=now), as_json, api_url)


@app.command(epilog=examples("turnout runs pause demo-3f"))
def pause(run_id: Id, as_json: Json = False, api_url: Url = None) -> None:
    """Pause a run."""
    _act(run_id, lambda client, found: client.pause(found), as_json, api_url)


@app.command(epilog=examples("turnout runs resume demo-3f"))
def resume(run_id: Id, as_json: Json = False, api_url: Url = None) -> None:
    """Resume a run that is paused, stopped or failed, from its newest checkpoint."""
    _act(run_id, lambda client, found: client.resume(found), as_json, api_url)


@app.command(
    epilog=examples(
        "turnout runs fork demo-3f --set training.steps=200",
        "turnout runs fork demo-3f --checkpoint 50 --name with-grpo --set objective.name=grpo --watch",
    )
)
def fork(
    run_id: Id,
    checkpoint: Annotated[
        int | None, typer.Option(min=1, help="Step of the checkpoint; by default the newest.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new run.")] = None,
    settings: Settings = None,
    watch_it: Watch = False,
    idempotency_key: Key = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Start a new run from a checkpoint of another, with changed settings."""
    from turnout.cli import output
    from turnout.cli.run_file import changes_of
    from turnout.client.run_ids import client_of

    changes = changes_of(settings or ())
    with client_of(api_url, run_id) as (client, found):
        run = client.fork(
            found, checkpoint=checkpoint, name=name, changes=changes or None, idempotency_key=idempotency_key
        )
        output.show_notices(run.notices)
        if not watch_it:
            step = run.forked_from.step if run.forked_from else 0
            output.show(run, as_json, f"{run.id}  {run.name}: {run.state}, from step {step} of {found}")
            return
        raise typer.Exit(_watch(client, run.id, as_json))


@app.command(epilog=examples("turnout runs delete demo-3f --yes"))
def delete(
    run_id: Id,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Delete a run that has ended: its weights, checkpoints, queues and history."""
    from services.contracts.plain_text import in_line
    from turnout.cli import output
    from turnout.client.run_ids import client_of

    with client_of(api_url, run_id) as (client, found):
        run = client.run(found)
        if not yes and not typer.confirm(in_line(f"Delete {run.name} ({run.id}) with all its files?")):
            raise typer.Exit(1)
        client.delete(run.id)
    output.show({"deleted": run.id}, as_json, f"Deleted {run.id}.")


@app.command(epilog=examples("turnout runs report demo-3f --out report"))
def report(
    run_id: Id,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; by default <home>/runs/<id>/report.")] = None,
    home: Annotated[Path, typer.Option(help="Home of the deployment.")] = Path(".turnout"),
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Write a report with plots and corrected responses: report.md and report.html."""
    from turnout.cli import output
    from turnout.cli.run_data import collect
    from turnout.cli.views import corrections
    from turnout.cli.views.report import report_folder, write_report
    from turnout.client.run_ids import client_of

    with client_of(api_url, run_id) as (client, found):
        data = collect(client, found)
        corrected = corrections.find(client, data.run)
    folder = write_report(data, out or report_folder(home, data.run.id), corrected)
    output.show({"folder": str(folder), "html": str(folder / "report.html")}, as_json, f"{folder / 'report.html'}")


@app.command(epilog=examples("turnout runs compare demo-3f demo-91 --png compare.png"))
def compare(
    run_ids: Ids,
    png: Annotated[Path, typer.Option(help="Where to write the plot.")] = Path("compare.png"),
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Compare runs: a table and a plot."""
    from turnout.cli.run_data import collect
    from turnout.cli.views import compare as comparing
    from turnout.client.client import Client
    from turnout.client.run_ids import full_id

    with Client(api_url) as client:
        runs = [collect(client, full_id(client, run_id)) for run_id in run_ids]
    comparing.compare(runs, png, as_json)


app.add_typer(history)
app.add_typer(teachers)
app.add_typer(push)


def _with_preset(settings: list[str] | None, preset: str | None) -> list[str]:
    return [*([f"preset={preset}"] if preset else []), *(settings or [])]


def _act(run_id: str, action: Callable[[Client, str], Any], as_json: bool, api_url: str | None) -> None:
    from turnout.cli import output
    from turnout.client.run_ids import client_of

    with client_of(api_url, run_id) as (client, found):
        run = action(client, found)
        coming = {("running", "paused"): "; pauses after its current step", ("paused", "running"): "; resuming"}
        output.show(run, as_json, f"{run.id}  {run.name}: {run.state}{coming.get((run.state, run.desired), '')}")


def _watch(client: Client, run_id: str, as_json: bool) -> int:
    from turnout.cli.views.watch import watch as watch_run

    return watch_run(client, run_id, as_json=as_json)

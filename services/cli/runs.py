"""`turnout runs ...`: every action of the REST API from a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from services.cli.client import Client

app = typer.Typer(
    help="Start, watch, steer and compare runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Id = Annotated[str, typer.Argument(metavar="ID", help="The run's id, or the beginning of it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Url = Annotated[str | None, typer.Option(help="URL of the API; default TURNOUT_API_URL or http://127.0.0.1:8400.")]


@app.command()
def start(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Run file (YAML).")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Lay a value over the file's.")
    ] = None,
    watch_it: Annotated[bool, typer.Option("--watch", help="Stay and show progress until the run ends.")] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="A repeated start with this key starts nothing.")] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Check a run file and start it."""
    from services.cli import output
    from services.cli.client import Client
    from services.cli.run_file import load_run

    body = load_run(file, settings or ())
    with Client(api_url) as client:
        run = client.create_run(body, idempotency_key=idempotency_key)
        if not watch_it:
            output.show(run, as_json, f"{run.id}  {run.name}: {run.state}")
            return
        raise typer.Exit(_watch(client, run.id, as_json))


@app.command("list")
def list_runs(
    state: Annotated[str | None, typer.Option(help="Only runs in this state.")] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """List runs, newest first."""
    from services.cli import output
    from services.cli.client import Client

    with Client(api_url) as client:
        output.show_runs(list(client.runs(state=state)), as_json)


@app.command()
def show(run_id: Id, as_json: Json = False, api_url: Url = None) -> None:
    """Show one run: state, newest metrics, evaluations, checkpoints."""
    from services.cli import output
    from services.cli.client import Client
    from services.cli.run_data import collect

    with Client(api_url) as client:
        output.show_run(collect(client, _full_id(client, run_id)), as_json)


@app.command()
def watch(run_id: Id, as_json: Json = False, api_url: Url = None) -> None:
    """Show a run's progress until it ends. Survives restarts of the API. Ctrl-C leaves the run alone."""
    from services.cli.client import Client

    with Client(api_url) as client:
        raise typer.Exit(_watch(client, _full_id(client, run_id), as_json))


@app.command()
def stop(
    run_id: Id,
    now: Annotated[bool, typer.Option("--now", help="At once, without a checkpoint.")] = False,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Stop a run after its present step, with a checkpoint."""
    _act(run_id, lambda client, found: client.stop(found, now=now), as_json, api_url)


@app.command()
def pause(run_id: Id, as_json: Json = False, api_url: Url = None) -> None:
    """Pause a run."""
    _act(run_id, lambda client, found: client.pause(found), as_json, api_url)


@app.command()
def resume(run_id: Id, as_json: Json = False, api_url: Url = None) -> None:
    """Go on with a run that is paused, stopped or failed, from its newest checkpoint."""
    _act(run_id, lambda client, found: client.resume(found), as_json, api_url)


@app.command()
def delete(
    run_id: Id,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Delete a run that has ended: its weights, checkpoints, queues and history."""
    from services.cli import output
    from services.cli.client import Client

    with Client(api_url) as client:
        run = client.run(_full_id(client, run_id))
        if not yes and not typer.confirm(f"Delete {run.name} ({run.id}) with all its files?"):
            raise typer.Exit(1)
        client.delete(run.id)
    output.show({"deleted": run.id}, as_json, f"{run.id} is deleted.")


@app.command()
def events(
    run_id: Id,
    after: Annotated[str | None, typer.Option(help="Go on behind the event with this id.")] = None,
    api_url: Url = None,
) -> None:
    """Print a run's events as JSON lines as they happen, until Ctrl-C."""
    import msgspec

    from services.cli.client import Client

    with Client(api_url) as client:
        for event in client.events(_full_id(client, run_id), after=after):
            print(msgspec.json.encode(event).decode(), flush=True)


@app.command()
def report(
    run_id: Id,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default <home>/runs/<id>/report.")] = None,
    home: Annotated[Path, typer.Option(help="Home of the deployment.")] = Path(".turnout"),
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Write a report with plots: report.md and report.html."""
    from services.cli import output
    from services.cli.client import Client
    from services.cli.report import write_report
    from services.cli.run_data import collect

    with Client(api_url) as client:
        data = collect(client, _full_id(client, run_id))
    folder = write_report(data, out or home / "runs" / data.run.id / "report")
    output.show({"folder": str(folder), "html": str(folder / "report.html")}, as_json, f"{folder / 'report.html'}")


@app.command()
def compare(
    run_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Runs to compare.")],
    png: Annotated[Path, typer.Option(help="Where to write the plot.")] = Path("compare.png"),
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Compare runs: a table and a plot."""
    from services.cli import compare as comparing
    from services.cli.client import Client
    from services.cli.run_data import collect

    with Client(api_url) as client:
        runs = [collect(client, _full_id(client, run_id)) for run_id in run_ids]
    comparing.compare(runs, png, as_json)


def _act(run_id: str, action: Callable[[Client, str], Any], as_json: bool, api_url: str | None) -> None:
    from services.cli import output
    from services.cli.client import Client

    with Client(api_url) as client:
        run = action(client, _full_id(client, run_id))
        output.show(run, as_json, f"{run.id}  {run.name}: {run.state}")


def _watch(client: Client, run_id: str, as_json: bool) -> int:
    from services.cli.watch import watch as watch_run

    return watch_run(client, run_id, as_json=as_json)


def _full_id(client: Client, given: str) -> str:
    """The id that `given` is, or is the only beginning of."""
    from services.contracts.errors import ConflictError, NotFoundError

    try:
        return client.run(given).id
    except NotFoundError:
        matches = [run.id for run in client.runs() if run.id.startswith(given)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConflictError(f"{given} is the beginning of {len(matches)} run ids.", remedy="Give more of it.")
    raise NotFoundError(f"There is no run {given}.", remedy="`turnout runs list` shows all.")

"""`turnout services` and `turnout queues`: what is running and what it is waiting for."""

from __future__ import annotations

from typing import Annotated

import typer

from turnout.cli.options import Json, Url, examples

app = typer.Typer(rich_markup_mode=None)


@app.command(epilog=examples("turnout services", "turnout services --json"))
def services(as_json: Json = False, api_url: Url = None) -> None:
    """List the live services: state, run, weight version, and what each is waiting for."""
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        items = client.services()
    if as_json or not items:
        output.show(items, as_json, "No services.")
        return
    rows = []
    for item in items:
        waits = item.waiting_for
        if waits and item.waiting_since is not None:
            waits += f" ({output.duration(item.at - item.waiting_since)})"
        state = f"out of rotation: {item.weight_error}" if item.out_of_rotation else item.state
        version = "-" if item.weight_version is None else str(item.weight_version)
        rows.append([item.instance, state, item.run_id or "-", version, waits or "-"])
    output.print_table(["service", "state", "run", "weights", "waits for"], rows)


@app.command(epilog=examples("turnout queues", "turnout queues --run demo-3f"))
def queues(
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID", help="Only the queues of this run.")] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """List the queues of runs with their number of groups and the age of the oldest."""
    from turnout.cli import output
    from turnout.client.client import Client
    from turnout.client.run_ids import full_id

    with Client(api_url) as client:
        items = client.queues(full_id(client, run_id) if run_id else None)
    if as_json or not items:
        output.show(items, as_json, "No queues.")
        return
    rows = [
        [item.run_id, item.stream, str(item.depth), output.duration(item.oldest_seconds) if item.depth else "-"]
        for item in items
    ]
    output.print_table(["run", "queue", "groups", "oldest"], rows)

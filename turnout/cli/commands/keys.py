"""`turnout keys`: who may call the API."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer

from turnout.cli.options import Json, Url, examples

app = typer.Typer(
    help="Create, list and revoke API keys. Requires a key with the role operate in TURNOUT_API_KEY.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Role(StrEnum):
    """What a key allows."""

    read = "read"
    use = "use"
    operate = "operate"


@app.command("list", epilog=examples("turnout keys list"))
def list_keys(as_json: Json = False, api_url: Url = None) -> None:
    """List the keys, oldest first, without their text."""
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        items = client.keys()
    if as_json or not items:
        output.show(items, as_json, "No keys except TURNOUT_API_KEY.")
        return
    rows = [
        [item.id, item.name, item.role, time.strftime("%Y-%m-%d", time.localtime(item.created_at))] for item in items
    ]
    output.print_table(["id", "name", "role", "created"], rows)


@app.command(epilog=examples("turnout keys create Prometheus", "turnout keys create Ada --role operate --json"))
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who uses the key, or what it is for.")],
    role: Annotated[
        Role,
        typer.Option(
            help="read: view everything except keys. use: ask the policies only. operate: also start and change runs."
        ),
    ] = Role.read,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Create a key. Its text is printed once and not stored."""
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        made = client.create_key(name, role.value)
    output.show(made, as_json, made.key)


@app.command(epilog=examples("turnout keys revoke 3f9c2a1b"))
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `turnout keys list` shows it.")],
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Revoke a key immediately."""
    from turnout.cli import output
    from turnout.client.client import Client

    with Client(api_url) as client:
        client.revoke_key(key_id)
    output.show({"revoked": key_id}, as_json, f"{key_id} is revoked.")

"""`turnout track`: exports runs to an experiment tracker."""

from __future__ import annotations

import os
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from services.contracts.errors import ConfigurationError
from services.contracts.records import Run
from turnout.cli.interrupts import Interrupts
from turnout.cli.options import Json, Url, complete_run, examples

app = typer.Typer(rich_markup_mode=None)


class Artifacts(StrEnum):
    """Which checkpoints are sent."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


Some = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Only these runs, or beginnings of their ids.", autocompletion=complete_run),
]


@app.command(
    epilog=examples(
        "turnout track --to tensorboard",
        "MLFLOW_TRACKING_URI=http://127.0.0.1:5000 turnout track --to mlflow --project arithmetic",
        "WANDB_MODE=offline turnout track demo-3f --to wandb --once",
    )
)
def track(
    to: Annotated[str, typer.Option(help="tensorboard, mlflow, wandb, trackio, or one of an installed package.")],
    ids: Some = None,
    project: Annotated[str, typer.Option(help="Project or experiment that the runs go to.")] = "turnout",
    folder: Annotated[
        Path | None, typer.Option(help="For progress and local files; by default .turnout/trackers/<tracker>.")
    ] = None,
    samples: Annotated[bool, typer.Option(help="Export samples as tables.")] = True,
    artifacts: Annotated[
        Artifacts, typer.Option(help="Checkpoints to send: none, the last one of a run that has ended, or all.")
    ] = Artifacts.NONE,
    once: Annotated[bool, typer.Option("--once", help="Export what there is, and exit.")] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds between checks for new runs.")] = 5.0,
    page_url: Annotated[
        str | None, typer.Option(help="The page's URL, for links back; by default TURNOUT_PAGE_URL or the API's.")
    ] = None,
    environment: Annotated[
        Path | None, typer.Option(help="File with lines NAME=VALUE for the tracker's library, such as WANDB_API_KEY.")
    ] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Export runs to an experiment tracker: all of them and further ones as they are created, or those given."""
    from turnout.cli.terminal import say_error
    from turnout.client.client import Client
    from turnout.client.run_ids import full_id
    from turnout.trackers.base import Place
    from turnout.trackers.loop import Exporter, locked
    from turnout.trackers.registry import load

    if environment is not None:
        os.environ.update(read_environment(environment))
    kind = load(to)
    folder = (folder or Path(".turnout/trackers") / to).absolute()
    with locked(folder), Client(api_url) as client, Interrupts() as interrupts:
        exporter = Exporter(
            client,
            kind,
            Place(project, folder, artifacts=artifacts is not Artifacts.NONE),
            run_ids=[full_id(client, run_id) for run_id in ids or []],
            page_url=page_url or os.environ.get("TURNOUT_PAGE_URL") or client.url,
            samples=samples,
            artifacts=artifacts.value,
            tell=partial(_tell, as_json),
            warn=lambda text: say_error(f"turnout track: {text}"),
        )
        try:
            succeeded = exporter.round()
            while not (once or interrupts.requested):
                interrupts.sleep(every)
                succeeded = exporter.round()
        finally:
            exporter.close()
    if once and not succeeded:
        raise typer.Exit(1)


def _tell(as_json: bool, run: Run) -> None:
    """Say that a run has been exported to its end."""
    from turnout.cli.terminal import say, say_json

    if as_json:
        say_json({"id": run.id, "state": run.state, "step": run.step})
    else:
        say(f"{run.id}  {run.name}: exported to its end ({run.state}, {run.step} steps)")


def read_environment(path: Path) -> dict[str, str]:
    """Variables of a file: NAME=VALUE, one per line; empty lines and lines that begin with # are skipped.

    Raises:
        ConfigurationError: it cannot be read, or a line is none of these. The message does not show the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The file {path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}.",
            remedy="Correct --environment.",
            field="--environment",
        ) from error
    out = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = line.strip().partition("=")
        if not name or name.startswith("#"):
            continue
        if not equals or not name.isidentifier():
            raise ConfigurationError(
                f"Line {number} of {path} is not NAME=VALUE.", remedy="Correct it.", field="--environment"
            )
        out[name] = value
    return out

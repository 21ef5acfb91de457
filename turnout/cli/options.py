"""Arguments and options that several commands share, and the format of examples in help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

COMPLETION_SECONDS = 1.0
"""A shell that hangs for longer is worse than no completion."""


def complete_run(incomplete: str) -> list[tuple[str, str]]:
    """Ids of runs with their names and states, for the shell; nothing if no API responds."""
    from services.contracts.errors import TurnoutError
    from services.contracts.plain_text import in_line
    from turnout.client.client import Client

    try:
        with Client(timeout_seconds=COMPLETION_SECONDS) as client:
            found = [run for run in client.runs() if run.id.startswith(incomplete)]
            return [(in_line(run.id), in_line(f"{run.name}, {run.state}")) for run in found]
    except TurnoutError:
        return []


def examples(*lines: str) -> str:
    """An epilog for help texts. The control character prevents rewrapping."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


Id = Annotated[str, typer.Argument(metavar="ID", help="The run's id, or its beginning.", autocompletion=complete_run)]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help="Runs to compare.", autocompletion=complete_run)]
ExperimentId = Annotated[str, typer.Argument(metavar="ID", help="The experiment's id, or its beginning.")]
ExperimentFiles = Annotated[
    list[Path], typer.Argument(metavar="FILE", help="Experiment file (YAML); each further file is laid over it.")
]
EvaluationId = Annotated[str, typer.Argument(metavar="ID", help="The evaluation's id, or its beginning or end.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="Run file (YAML).")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a value of the file; can be given several times."),
]
Preset = Annotated[
    str | None, typer.Option(help="Start from these settings; fields of the file and --set override them.")
]
GpuKind = Annotated[
    str | None, typer.Option("--gpu", help="GPU type, to estimate times by formula: a100, h100, h200 or h20.")
]
Gpus = Annotated[int | None, typer.Option(min=1, max=1024, help="Number of GPUs.")]
ResponseTokens = Annotated[
    int | None, typer.Option(min=1, help="Mean length of responses; by default all have full length.")
]
Priority = Annotated[
    int, typer.Option(min=-100, max=100, help="Of queued runs, the one with the highest priority starts first.")
]
Watch = Annotated[bool, typer.Option("--watch", help="Show progress until the run ends.")]
Key = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="A repeated call with this key returns what the first call created."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Url = Annotated[
    str | None,
    typer.Option(help="URL of the API; by default TURNOUT_API_URL or http://127.0.0.1:8400. Sends TURNOUT_API_KEY."),
]

"""The `turnout` command. Nothing heavy is imported before a command runs, so that help is fast."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.contracts.errors import ConfigurationError, TurnoutError
from turnout.cli.commands.chat import chat
from turnout.cli.commands.data import app as data
from turnout.cli.commands.evaluations import app as evaluations
from turnout.cli.commands.evaluations import evaluate
from turnout.cli.commands.experiments import app as experiments
from turnout.cli.commands.experiments import experiment
from turnout.cli.commands.fleet import app as fleet
from turnout.cli.commands.keys import app as keys
from turnout.cli.commands.runs import app as runs
from turnout.cli.commands.track import app as track
from turnout.cli.exits import exit_code
from turnout.cli.options import Json, examples
from turnout.cli.terminal import say, say_error, spell_out_what_cannot_be_shown

app = typer.Typer(
    name="turnout",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(runs, name="runs")
app.add_typer(data, name="data")
app.command(epilog=examples("turnout experiment examples/experiments/embedded.yaml"))(experiment)
app.command(epilog=examples('turnout chat demo-3f "What is 17 + 25?"', "turnout chat demo-3f --version 40"))(chat)
app.add_typer(experiments, name="experiments")
app.command(
    epilog=examples(
        "turnout evaluate my.yaml",
        "turnout evaluate --model models/qwen3-0.6b --data datasets/gsm8k.jsonl --k 8 --limit 200",
        "turnout evaluate --run demo-3f --step 50",
    )
)(evaluate)
app.add_typer(evaluations, name="evaluations")
app.add_typer(fleet)
app.add_typer(track)
app.add_typer(keys, name="keys")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"turnout {version('turnout')}")
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Trains language models with SRPO: an asynchronous ring of rollout, verifier and learner services."""


Home = Annotated[Path, typer.Option(help="Folder for queues, runs, logs and process state.")]


@app.command(epilog=examples("turnout up", "turnout up --detach --rollout-servers 2"))
def up(
    home: Home = Path(".turnout"),
    rollout_servers: Annotated[int, typer.Option(min=1, help="Rollout servers (vLLM engines).")] = 1,
    verifiers: Annotated[int, typer.Option(min=1, help="Verifiers.")] = 1,
    learners: Annotated[
        int, typer.Option(min=1, help="Learners. Each trains one run, with at least one rollout server.")
    ] = 1,
    api_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0 picks a free one.")] = 8400,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once everything is running in the background.")
    ] = False,
    wait: Annotated[float, typer.Option(help="With --detach: seconds to wait for the services.")] = 300.0,
    as_json: Json = False,
) -> None:
    """Start all services on this machine, with their own queue server unless TURNOUT_REDIS_URL names one."""
    from turnout.cli.local import launcher
    from turnout.cli.local.plan import Counts

    counts = Counts(rollout_servers, verifiers, learners)
    if detach:
        code = launcher.up_detached(home, counts, api_port=api_port, as_json=as_json, wait_seconds=wait)
    else:
        code = launcher.up(home, counts, api_port=api_port, as_json=as_json)
    raise typer.Exit(code)


@app.command(epilog=examples("turnout down --home .turnout"))
def down(home: Home = Path(".turnout"), as_json: Json = False) -> None:
    """Stop exactly what `turnout up` started in a home."""
    from turnout.cli.local import launcher

    raise typer.Exit(launcher.down(home, as_json=as_json))


@app.command(epilog=examples("turnout demo", "turnout demo --set training.steps=20", "turnout demo --resume"))
def demo(
    home: Home = Path(".turnout/demo"),
    resume: Annotated[bool, typer.Option("--resume", help="Resume the demo run that was interrupted.")] = False,
    file: Annotated[Path | None, typer.Option(help="Run file; by default examples/runs/demo.yaml.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a value of the run file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a small model with SRPO on this machine: start everything, run, report, stop everything."""
    from turnout.cli.commands.demo import Demo

    raise typer.Exit(Demo(home, file=file, settings=settings or [], as_json=as_json).run(resume=resume))


@app.command(epilog=examples("turnout doctor", "turnout doctor --gpu > report.md", "turnout doctor --gpu --part lora"))
def doctor(
    home: Home = Path(".turnout"),
    api_port: Annotated[int, typer.Option(min=1, max=65535, help="Port for the API.")] = 8400,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Instead, train a model of random weights on the GPU and print a report.")
    ] = False,
    part: Annotated[
        list[str] | None, typer.Option("--part", help="With --gpu: only this part; may be repeated.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="With --gpu: a small model on the CPU.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine and say what to do if something is missing. Exits with 1 if a check fails."""
    if gpu:
        from turnout.cli.commands.gpu_proof import gpu_proof

        raise typer.Exit(gpu_proof(part or [], cpu=cpu, as_json=as_json))
    if part or cpu:
        raise ConfigurationError("--part and --cpu belong to --gpu.", remedy="Add --gpu.")
    from turnout.cli.commands import doctor as checks

    raise typer.Exit(checks.doctor(home, api_port, as_json))


def main() -> None:
    """Run the command; expected errors become one sentence and an exit code."""
    spell_out_what_cannot_be_shown()
    try:
        app()
    except TurnoutError as error:
        if "--json" in sys.argv:
            fault = {"title": error.title, "detail": error.message, "remedy": error.remedy, "field": error.field}
            say_error(json.dumps({"error": fault}))
        else:
            say_error(f"turnout: {error}")
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()

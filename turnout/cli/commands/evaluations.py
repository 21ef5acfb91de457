"""`turnout evaluate` and `turnout evaluations ...`: models and checkpoints on validation sets, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turnout.cli.options import EvaluationId, Json, Key, Settings, Url, examples

if TYPE_CHECKING:
    from services.contracts.records import ModelEvaluation
    from turnout.client.client import Client

app = typer.Typer(
    help="List, watch, compare and delete evaluations; `turnout evaluate` starts one.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
All = Annotated[bool, typer.Option("--all", help="List every changed question, not only the first ten.")]


def evaluate(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Evaluation file, or a run file, whose model is evaluated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub name of the model.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Type of the model's weights: bfloat16 or float32.")] = None,
    run: Annotated[
        str | None, typer.Option(help="Run or fork whose weights are evaluated: id or its beginning.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Step of the run; by default the newest on disk.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Questions: file or hub:<owner>/<name>; can be given several times.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Reward kind for rows of --data that name none.")] = None,
    k: Annotated[int | None, typer.Option("--k", help="Samples per question.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first N questions of each set.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the samples.")] = None,
    name: Annotated[str | None, typer.Option(help="A name to display.")] = None,
    settings: Settings = None,
    priority: Annotated[
        int, typer.Option(min=-100, max=100, help="Of queued evaluations, the highest priority starts first.")
    ] = 0,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the evaluation is queued.")] = False,
    idempotency_key: Key = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Evaluate a model or a run's weights on validation sets, with progress, and print the results.

    An idle rollout server samples; the evaluation waits while runs use all of them. Ctrl-C does not affect it.
    """
    from turnout.cli import output
    from turnout.client.client import Client
    from turnout.client.run_ids import full_id

    with Client(api_url) as client:
        options = [
            *_setting("name", name),
            *_setting("model.path", model),
            *_setting("model.dtype", dtype),
            *_setting("run", full_id(client, run) if run else None),
            *_setting("step", step),
            *_setting("seed", seed),
            *_setting("evaluation.num_samples", k),
            *_setting("evaluation.temperature", temperature),
            *_setting("evaluation.max_questions", limit),
            *(settings or []),
        ]
        body = read_request(file, options, _sets(data or [], kind))
        made = client.create_evaluation(body, priority=priority, idempotency_key=idempotency_key)
        if detach:
            output.show(made, as_json, f"{made.id}  {made.name}: {made.state}")
            return
        raise typer.Exit(_watch(client, made.id, as_json))


def _setting(field: str, value: Any) -> list[str]:
    import json

    return [] if value is None else [f"{field}={json.dumps(value)}"]


def _sets(paths: list[str], kind: str | None) -> list[dict[str, Any]]:
    return [{"path": path} | ({"kind": kind} if kind else {}) for path in paths]


def read_request(file: Path | None, settings: list[str], sets: list[dict[str, Any]]) -> dict[str, Any]:
    """The checked body of `POST /v1/evaluations`: the file's, with the settings laid over it.

    Raises:
        ConfigurationError: with file, line and field, or the field of an option.
    """
    from services.contracts.errors import ConfigurationError
    from services.contracts.evaluations.request import parse_request, part_of_run_file
    from services.contracts.run_file import ParsedRunFile
    from turnout.cli.run_file import apply_setting, read_run_file

    read = ParsedRunFile("") if file is None else read_run_file(file)
    if "training" in read.values:
        read.values = part_of_run_file(read.values)
    for setting in settings:
        apply_setting(read, setting)
    if sets:
        read.lay(("data", "validation"), sets)
    try:
        parse_request(read.values)
    except ConfigurationError as error:
        if file is None:
            raise
        place = read.place(tuple(error.field.split("."))) if error.field else str(file)
        raise ConfigurationError(f"{place}: {error.message}", remedy=error.remedy, field=error.field) from error
    return read.values


@app.command("list", epilog=examples("turnout evaluations list", "turnout evaluations list --run demo-3f"))
def list_evaluations(
    run: Annotated[str | None, typer.Option(help="Only those of this run's weights.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many evaluations.")] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """List evaluations, newest first."""
    from turnout.cli import output
    from turnout.cli.views.evaluation import list_rows
    from turnout.client.client import Client
    from turnout.client.run_ids import full_id

    with Client(api_url) as client:
        items = client.model_evaluations(run_id=full_id(client, run) if run else None, limit=limit)
    if as_json or not items:
        output.show(items, as_json, "No evaluations. Start one with `turnout evaluate`.")
        return
    output.print_table(["id", "name", "state", "questions", "results"], list_rows(items))


@app.command(epilog=examples("turnout evaluations show evaluation-3f"))
def show(evaluation_id: EvaluationId, as_json: Json = False, api_url: Url = None) -> None:
    """Show one evaluation with the results of the questions judged so far."""
    from turnout.cli import output
    from turnout.client.client import Client
    from turnout.client.run_ids import full_evaluation_id

    with Client(api_url) as client:
        found = client.evaluation(full_evaluation_id(client, evaluation_id))
    if as_json:
        output.show(found, True, "")
        return
    _print(found)


@app.command(epilog=examples("turnout evaluations watch evaluation-3f"))
def watch(evaluation_id: EvaluationId, as_json: Json = False, api_url: Url = None) -> None:
    """Show an evaluation's progress until it ends, then its results. Ctrl-C does not affect it."""
    from turnout.client.client import Client
    from turnout.client.run_ids import full_evaluation_id

    with Client(api_url) as client:
        raise typer.Exit(_watch(client, full_evaluation_id(client, evaluation_id), as_json))


@app.command(epilog=examples("turnout evaluations compare evaluation-3f evaluation-8c"))
def compare(
    first: EvaluationId, second: EvaluationId, show_all: All = False, as_json: Json = False, api_url: Url = None
) -> None:
    """Compare two evaluations question by question: what the second gained, and what it lost."""
    from turnout.cli import output
    from turnout.cli.views.evaluation import difference_lines
    from turnout.client.client import Client
    from turnout.client.run_ids import full_evaluation_id

    with Client(api_url) as client:
        ids = [full_evaluation_id(client, item) for item in (first, second)]
        found = client.compare_evaluations(*ids)
    output.show(found, as_json, "\n".join(difference_lines(found, None if show_all else 10)))


@app.command(epilog=examples("turnout evaluations change evaluation-3f --priority 10"))
def change(
    evaluation_id: EvaluationId,
    name: Annotated[str | None, typer.Option(help="New name.")] = None,
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, help="Of queued evaluations, the highest priority starts first.")
    ] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Change an evaluation's name or place in the queue, in any state."""
    from services.contracts.errors import ConfigurationError
    from turnout.cli import output
    from turnout.client.client import Client
    from turnout.client.run_ids import full_evaluation_id

    if name is None and priority is None:
        raise ConfigurationError("Nothing to change.", remedy="Give --name or --priority.")
    with Client(api_url) as client:
        found = client.change_evaluation(full_evaluation_id(client, evaluation_id), name=name, priority=priority)
    output.show(found, as_json, f"{found.id}  {found.name}: {found.state}, priority {found.priority}")


@app.command(epilog=examples("turnout evaluations cancel evaluation-3f"))
def cancel(evaluation_id: EvaluationId, as_json: Json = False, api_url: Url = None) -> None:
    """End an evaluation; the results that it has stay."""
    from turnout.cli import output
    from turnout.client.client import Client
    from turnout.client.run_ids import full_evaluation_id

    with Client(api_url) as client:
        found = client.cancel_evaluation(full_evaluation_id(client, evaluation_id))
    output.show(found, as_json, f"{found.id}  {found.name}: {found.state}")


@app.command(epilog=examples("turnout evaluations delete evaluation-3f"))
def delete(evaluation_id: EvaluationId, as_json: Json = False, api_url: Url = None) -> None:
    """Delete an evaluation that has ended, with its results."""
    from turnout.cli import output
    from turnout.client.client import Client
    from turnout.client.run_ids import full_evaluation_id

    with Client(api_url) as client:
        found = full_evaluation_id(client, evaluation_id)
        client.delete_evaluation(found)
    output.show({"deleted": found}, as_json, f"Deleted {found}.")


def _print(found: ModelEvaluation) -> None:
    from turnout.cli import output
    from turnout.cli.terminal import say
    from turnout.cli.views.evaluation import HEADER, headline, result_rows

    say(headline(found))
    if found.results:
        output.print_table(HEADER, result_rows(found))


def _watch(client: Client, evaluation_id: str, as_json: bool) -> int:
    from turnout.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED
    from turnout.cli.views.evaluation import watch as watch_evaluation

    ended = watch_evaluation(client, evaluation_id, as_json=as_json)
    if ended is None:
        return EXIT_INTERRUPTED
    if not as_json:
        _print(ended)
    return {"succeeded": EXIT_OK, "cancelled": EXIT_STOPPED}.get(ended.state, EXIT_FAILED)

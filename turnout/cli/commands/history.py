"""`turnout runs steps|evaluations|checkpoints|samples|pushes|events`: a run's history from a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.contracts.step_metrics import STEP_METRICS
from turnout.cli.options import Id, Json, Url, examples

if TYPE_CHECKING:
    from services.contracts.records import RunEvent
    from turnout.client.client import Client

app = typer.Typer(rich_markup_mode=None)
STEP_COLUMNS = [name for name, metric in STEP_METRICS.items() if metric.column]


@app.command(epilog=examples("turnout runs steps demo-3f", "turnout runs steps demo-3f --after 90 --json"))
def steps(
    run_id: Id,
    after: Annotated[int, typer.Option(min=0, help="Only steps above this number.")] = 0,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Show the metrics of every training step; --json has all of them."""
    items = _ask(api_url, run_id, lambda client, found: list(client.steps(found, after=after)))
    rows = [[str(item.step), *(_number(item.metrics.get(name)) for name in STEP_COLUMNS)] for item in items]
    _show(items, as_json, ["step", *STEP_COLUMNS], rows, "No steps yet.")


@app.command(epilog=examples("turnout runs evaluations demo-3f"))
def evaluations(run_id: Id, as_json: Json = False, api_url: Url = None) -> None:
    """Show accuracy (avg@k) and pass@k of every evaluation."""
    items = _ask(api_url, run_id, lambda client, found: client.evaluations(found))
    header = ["step", "split", "k", "avg@k", "pass@k", "questions", "tokens", "cut", "faults"]
    rows = [
        [
            *(str(item.step), item.split, str(item.num_samples), f"{item.accuracy:.1%}", f"{item.pass_at_k:.1%}"),
            *(str(item.num_questions), f"{item.response_tokens_mean:.1f}", f"{item.truncated_ratio:.1%}"),
            str(item.num_faults),
        ]
        for item in items
    ]
    _show(items, as_json, header, rows, "No evaluations yet.")


@app.command(epilog=examples("turnout runs changes demo-3f", "turnout runs changes demo-3f --first 0 --second 50"))
def changes(
    run_id: Id,
    first: Annotated[int | None, typer.Option(min=0, help="Step of an evaluation; by default the first.")] = None,
    second: Annotated[int | None, typer.Option(min=0, help="Step of another; by default the newest.")] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="List every changed question, not only the first ten.")
    ] = False,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Show which questions a run learned and forgot between two of its own evaluations."""
    from turnout.cli import output
    from turnout.cli.views.evaluation import difference_lines

    def ask(client: Client, found: str) -> Any:
        steps = [item.step for item in client.evaluations(found)] or [0]
        chosen = (min(steps) if first is None else first, max(steps) if second is None else second)
        return client.compare_steps(found, *chosen)

    difference = _ask(api_url, run_id, ask)
    text = "\n".join(difference_lines(difference, None if show_all else 10, "step "))
    output.show(difference, as_json, text)


@app.command(epilog=examples("turnout runs checkpoints demo-3f"))
def checkpoints(run_id: Id, as_json: Json = False, api_url: Url = None) -> None:
    """Show a run's checkpoints, and which of them are still on disk."""
    items = _ask(api_url, run_id, lambda client, found: client.checkpoints(found))
    rows = [
        [str(item.step), _when(item.at), f"{item.bytes / 2**20:.1f} MiB", "yes" if item.exists else "no", item.path]
        for item in items
    ]
    _show(items, as_json, ["step", "written", "size", "on disk", "path"], rows, "No checkpoints yet.")


@app.command(epilog=examples("turnout runs samples demo-3f", "turnout runs samples demo-3f --step 10"))
def samples(
    run_id: Id,
    step: Annotated[int | None, typer.Option(min=0, help="Only groups of this step.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Groups to show.")] = 1,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Show groups with all their rollouts: reward, route and text; --json has the numbers of every token."""
    from turnout.cli import output
    from turnout.cli.terminal import say, say_lines

    groups = _ask(api_url, run_id, lambda client, found: client.samples(found, step=step, limit=limit))
    if as_json or not groups:
        output.show(groups, as_json, "No samples yet." if step is None else f"No samples of step {step}.")
        return
    for group in groups:
        say(f"step {group['step']}, question {group['question_id']}, expected: {group['answer']}")
        say_lines(group["prompt"])
        for item in group["samples"]:
            verdict = "correct" if item["correct"] else "failed"
            about = f"{verdict}, reward {item['reward']:.3g}, advantage {item['advantage']:+.3g}, {item['route']}"
            say_lines(f"\n[{item['index']}] {about}, {len(item['tokens'])} tokens\n{item['text'].strip()}")
        say()


@app.command(epilog=examples("turnout runs pushes demo-3f --limit 20"))
def pushes(
    run_id: Id,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Pushes to show.")] = 20,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Show the newest attempts to update rollout servers to new weights."""
    items = _ask(api_url, run_id, lambda client, found: client.weight_pushes(found, limit=limit))
    rows = [
        [
            str(item.version),
            item.instance,
            _when(item.at),
            f"{item.seconds:.2f} s",
            item.transport,
            item.error or "confirmed",
        ]
        for item in items
    ]
    _show(items, as_json, ["version", "server", "at", "took", "by", "result"], rows, "No weights have been pushed yet.")


@app.command(
    epilog=examples(
        "turnout runs events demo-3f",
        "turnout runs events demo-3f --json --no-follow > events.jsonl",
        "turnout runs events demo-3f --json --after 41",
    )
)
def events(
    run_id: Id,
    after: Annotated[str | None, typer.Option(help="Start after the event with this id.")] = None,
    follow: Annotated[bool, typer.Option(help="Wait for further events until the run has ended.")] = True,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Print a run's events as they happen. Resumes after the last one if the connection breaks."""
    from turnout.cli.terminal import say, say_json
    from turnout.client.run_ids import client_of

    with client_of(api_url, run_id) as (client, found):
        for event in client.follow(found, after=after) if follow else client.events(found, after=after, follow=False):
            if as_json:
                say_json(event)
            else:
                say(event_text(event))


def event_text(event: RunEvent) -> str:
    """One event as a line: id, time, type, and its fields."""
    from turnout.cli.output import quantities

    data = dict(event.data)
    at = time.strftime("%H:%M:%S", time.localtime(data.pop("at", 0.0)))
    metrics = data.pop("metrics", None)
    data.pop("groups", None)
    fields = data if metrics is None else data | {name: metrics[name] for name in STEP_COLUMNS if name in metrics}
    return f"{event.id:>6}  {at}  {event.type:<10}  {quantities(fields)}"


def _ask(api_url: str | None, run_id: str, question: Callable[[Client, str], Any]) -> Any:
    from turnout.client.run_ids import client_of

    with client_of(api_url, run_id) as (client, found):
        return question(client, found)


def _show(items: list[Any], as_json: bool, header: list[str], rows: list[list[str]], empty: str) -> None:
    from turnout.cli import output

    if as_json or not items:
        output.show(items, as_json, empty)
    else:
        output.print_table(header, rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))

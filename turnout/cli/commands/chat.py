"""`turnout chat`: a conversation with a run's policy, a checkpoint or a base model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turnout.cli.options import Id, Json, Url

if TYPE_CHECKING:
    from turnout.client.client import Client

Messages = list[dict[str, Any]]


def chat(
    run_id: Id,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="One question; without it, a conversation until Ctrl-D.")
    ] = None,
    version: Annotated[int | None, typer.Option(min=0, help="Only this weight version; by default the newest.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; by default what the run allows.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="1 by default; 0 is greedy.")] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Talk to a run's policy; the run continues. A checkpoint, or a base model by its path, is loaded onto an idle
    rollout server first. A key with the role use is enough. --json prints OpenAI's chunks, one per line."""
    from turnout.cli.terminal import say_error
    from turnout.client.calls import given
    from turnout.client.client import Client
    from turnout.client.run_ids import full_model_name

    options = given(max_tokens=max_tokens, temperature=temperature)
    history: Messages = [{"role": "system", "content": system}] if system else []
    with Client(api_url) as client:
        found = full_model_name(client, run_id)
        for question in _questions(prompt):
            history.append({"role": "user", "content": question})
            text, weights = _answer(client, found, history, version, options, as_json)
            history.append({"role": "assistant", "content": text})
            if not as_json:
                say_error(f"[{weights}]")


def _questions(prompt: str | None) -> Iterator[str]:
    """The prompt; or what is piped in, as one question; or each line that is typed, until the end of the input."""
    if prompt is not None:
        yield prompt
    elif not sys.stdin.isatty():
        yield sys.stdin.read()
    else:
        while True:
            try:
                line = input("> ")
            except (EOFError, KeyboardInterrupt):
                return
            if line.strip():
                yield line


def _answer(
    client: Client, run_id: str, history: Messages, version: int | None, options: dict[str, Any], as_json: bool
) -> tuple[str, str]:
    """Print the answer as it arrives. Returns it, and the run with the weight versions that sampled it."""
    from turnout.cli.terminal import say, say_json, say_part

    text = weights = ""
    for chunk in client.chat(run_id, history, version=version, **options):
        if as_json:
            say_json(chunk)
        weights = chunk.get("system_fingerprint") or weights
        for choice in chunk.get("choices", ()):
            part = choice["delta"].get("content") or ""
            text += part
            if not as_json:
                say_part(part)
    if not as_json:
        say()
    return text, weights

"""Builds REST requests and parses responses, without any I/O."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from services.contracts.errors import (
    ConfigurationError,
    ConflictError,
    NotFoundError,
    TurnoutError,
    UnavailableError,
    check_secret,
)
from services.contracts.pauses import growing_pause
from services.contracts.proxies import client_options
from services.contracts.records import RunEvent
from services.contracts.states import TERMINAL_STATES

if TYPE_CHECKING:
    from services.contracts.run_config import RunConfig

DEFAULT_URL = "http://127.0.0.1:8400"
T = TypeVar("T")
STREAM_TIMEOUT = httpx.Timeout(10.0, read=40.0)
"""The API sends a comment every 15 s; a stream that is silent for longer than this is dead."""
ANSWER_TIMEOUT = httpx.Timeout(10.0, read=600.0)
"""A policy's answer waits for a sequence of the engine, which training keeps busy."""
LONGEST_WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; `next` is the query of the next page, or None."""

    items: list[T]
    next: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how to parse its response."""

    method: str
    path: str
    read: Callable[[Any], T]
    params: dict[str, Any] = field(default_factory=dict)
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    timeout: Any = httpx.USE_CLIENT_DEFAULT

    def at(self, query: dict[str, str]) -> Call[T]:
        """The same call with further query parameters."""
        return replace(self, params=self.params | query)


def connection(url: str | None, key: str | None, timeout_seconds: float) -> dict[str, Any]:
    """Arguments of an httpx client for the API at `url`, or that of the environment."""
    url = (url or os.environ.get("TURNOUT_API_URL") or DEFAULT_URL).rstrip("/")
    remedy = f"Set a URL such as {DEFAULT_URL} with --api-url or TURNOUT_API_URL."
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"The API's URL {url!r} does not start with http:// or https://.", remedy=remedy)
    try:
        options = client_options(url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"The API's URL {url!r} is not valid: {error}.", remedy=remedy) from error
    key = key if key is not None else os.environ.get("TURNOUT_API_KEY", "")
    check_secret("TURNOUT_API_KEY", key)
    return {
        "base_url": url,
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": timeout_seconds,
        **options,
    }


def run_path(run_id: str, below: str = "") -> str:
    """Path of a run, or of a resource `below` it."""
    return f"/v1/runs/{quoted(run_id)}{below}"


def experiment_path(experiment_id: str, below: str = "") -> str:
    """Path of an experiment, or of a resource `below` it."""
    return f"/v1/experiments/{quoted(experiment_id)}{below}"


def evaluation_path(evaluation_id: str, below: str = "") -> str:
    """Path of an evaluation, or of a resource `below` it."""
    return f"/v1/evaluations/{quoted(evaluation_id)}{below}"


def quoted(name: str) -> str:
    """A name, escaped as one segment of a path."""
    return quote(name, safe="")


def several(values: str | Sequence[str]) -> list[str] | None:
    """The values of a parameter that may be repeated; None if there are none."""
    return [values] if isinstance(values, str) else list(values) or None


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None, for queries and bodies: the API has its own defaults."""
    return {name: value for name, value in values.items() if value is not None}


def idempotent(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key} if key else {}


def plain(config: RunConfig | dict[str, Any]) -> dict[str, Any]:
    return config if isinstance(config, dict) else config.model_dump(mode="json")


def event_request(run_id: str, after: str | None, follow: bool) -> dict[str, Any]:
    """Arguments of the streaming request."""
    return {
        "method": "GET",
        "url": run_path(run_id, "/events"),
        "params": {} if follow else {"follow": "false"},
        "headers": {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {}),
        "timeout": STREAM_TIMEOUT,
    }


def chat_request(run_id: str, version: int | None, messages: Sequence[dict[str, Any]], options: Any) -> dict[str, Any]:
    """Arguments of the streaming request to a run's policy."""
    model = run_id if version is None else f"{run_id}@{version}"
    body = {"model": model, "messages": list(messages), "stream": True, **options}
    return {"method": "POST", "url": "/v1/chat/completions", "json": body, "timeout": ANSWER_TIMEOUT}


def says_end(event: RunEvent | None) -> bool:
    """Whether the event says that the run has ended (it may have been resumed since)."""
    return event is not None and event.type == "state" and event.data.get("state") in TERMINAL_STATES


def retry_seconds(num_failures: int) -> float:
    """Seconds to wait before the next attempt: 0.5, doubled with every failure up to `LONGEST_WAIT_SECONDS`."""
    return growing_pause(0.5, num_failures, LONGEST_WAIT_SECONDS)


def nothing(_: Any) -> None:
    """Parses a response without content."""


def one(kind: type[T]) -> Callable[[Any], T]:
    """A parser for one value."""
    return lambda values: msgspec.convert(values, kind, strict=False)


def pages_of(kind: type[T], run_id: str | None = None) -> Callable[[Any], Page[T]]:
    """A parser for a page of items. Items of a run's history get its id, which responses do not repeat."""

    def read(values: Any) -> Page[T]:
        if isinstance(values, list):
            values = {"items": values}
        if run_id is not None:
            values["items"] = [{**item, "run_id": run_id} for item in values["items"]]
        items = msgspec.convert(values["items"], list[kind], strict=False)  # type: ignore[valid-type]
        for answered, asked in (("next_cursor", "cursor"), ("next_after", "after")):
            if values.get(answered) is not None:
                return Page(items, {asked: str(values[answered])})
        return Page(items)

    return read


def parse(call: Call[T], answer: httpx.Response) -> T:
    """The parsed response. Raises the error of its status, or `UnavailableError` if it did not come from the API."""
    raise_for_status(answer)
    try:
        return call.read(answer.json() if answer.content else None)
    except (ValueError, KeyError, TypeError, AttributeError, msgspec.ValidationError) as error:
        raise UnavailableError(
            f"{answer.request.url} returned an answer that is not from a Turnout API: {error}.",
            remedy="Check the URL, and that the API and the command have the same version.",
        ) from error


def raise_for_status(answer: httpx.Response) -> None:
    """Raise the error that a problem+json response describes."""
    if answer.is_success:
        return
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    if isinstance(problem.get("error"), dict):  # OpenAI's format, with the remedy in the message
        problem = {"detail": problem["error"].get("message"), "field": problem["error"].get("param")}
    elif "problem+json" not in answer.headers.get("content-type", "") and answer.status_code == 404:
        raise UnavailableError(
            f"{answer.request.url} was not found: the API is still starting, or another program answers.",
            remedy="Wait a moment and try again, or check the URL.",
        )
    message = str(
        problem.get("detail") or problem.get("title") or f"{answer.request.url} answered {answer.reason_phrase}."
    )
    remedy = str(problem.get("remedy") or "")
    if answer.status_code == 401 or (answer.status_code == 403 and not remedy):
        remedy = "Set TURNOUT_API_KEY to a key of this deployment."
    raise _kind(answer.status_code)(message, remedy=remedy, field=problem.get("field"))


def _kind(status: int) -> type[TurnoutError]:
    if status in (400, 401, 403, 413, 422, 431):
        return ConfigurationError
    if status in (408, 429, 502, 503, 504):
        return UnavailableError
    return {404: NotFoundError, 409: ConflictError}.get(status, TurnoutError)


def connection_fault(url: str, error: httpx.TransportError) -> UnavailableError:
    return UnavailableError(
        f"No API answers at {url}: {str(error) or type(error).__name__}.",
        remedy="Start one with `turnout up`, or set its URL with --api-url or TURNOUT_API_URL.",
    )


class ChunkParser:
    """Parses the text of a streamed answer of a policy, which may be cut anywhere."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> Iterator[dict[str, Any]]:
        """OpenAI's chunks in the next piece of text. Raises `UnavailableError` if the answer ended with an error."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise UnavailableError(str(chunk["error"].get("message")))
            yield chunk


class EventParser:
    """Parses the text of a server-sent event stream.

    Lines end only with a line feed; httpx would also end them within JSON text, at U+2028 and similar characters.
    """

    def __init__(self) -> None:
        self._rest = ""
        self._fields: dict[str, str] = {}
        self._id = ""

    def feed(self, text: str) -> Iterator[RunEvent]:
        """Parse the next piece of text, which may be cut anywhere; an empty line completes an event."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            yield from self._line(line.removesuffix("\r"))

    def _line(self, line: str) -> Iterator[RunEvent]:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                before = self._fields.get("data")
                value = value if before is None else f"{before}\n{value}"
            if name:
                self._fields[name] = value
            return
        fields, self._fields = self._fields, {}
        self._id = fields.get("id", self._id)
        if "data" in fields:
            yield RunEvent(id=self._id, type=fields.get("event", "message"), data=json.loads(fields["data"]))

"""Python clients of the REST API: `Client` (blocking) and `AsyncClient`, thin and typed. See docs/client.md.

    with Client() as client:
        run = client.create_run(config)
        for event in client.follow(run.id): ...

Answers that are not 2xx become the `TurnoutError` of their status, with the API's own sentence and remedy. Both
classes read TURNOUT_API_URL and TURNOUT_API_KEY where no arguments are given.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx

from services.contracts.errors import UnavailableError
from turnout.client import calls
from turnout.client.async_client import AsyncClient
from turnout.client.calls import Call, EventParser, Page, connection, connection_fault, parse, raise_for_status
from turnout.client.models import (
    Checkpoint,
    Evaluation,
    Key,
    NewKey,
    Queue,
    Run,
    RunEvent,
    RunFile,
    Service,
    Step,
    WeightPush,
)

__all__ = ["AsyncClient", "Client"]

if TYPE_CHECKING:
    from services.contracts.run_config import RunConfig

T = TypeVar("T")


class Client:
    """Blocking client. Close it, or use it in a `with` statement."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_seconds: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        arguments = connection(url, key, timeout_seconds)
        self.url: str = arguments["base_url"]
        self._http = httpx.Client(**arguments, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _send(self, call: Call[T]) -> T:
        try:
            answer = self._http.request(
                call.method, call.path, params=call.params, json=call.body, headers=call.headers
            )
        except httpx.TransportError as error:
            raise connection_fault(self.url, error) from error
        return parse(call, answer)

    def _pages(self, call: Call[Page[T]]) -> Iterator[T]:
        while True:
            page = self._send(call)
            yield from page.items
            if page.next is None:
                return
            call = call.at(page.next)

    def create_run(self, config: RunConfig | dict[str, Any], *, idempotency_key: str | None = None) -> Run:
        """Queue a run; a repeated `idempotency_key` returns the run that was made the first time."""
        return self._send(calls.create_run(config, idempotency_key))

    def runs(self, *, state: str | None = None, name: str | None = None, sort: str | None = None) -> Iterator[Run]:
        """All runs, newest first. `name` is a text that the name contains; `sort` a field, with - for descending."""
        return self._pages(calls.list_runs(state, name, sort))

    def run(self, run_id: str) -> Run:
        return self._send(calls.get_run(run_id))

    def stop(self, run_id: str, *, now: bool = False) -> Run:
        """End a run: with a checkpoint, or at once (`now`) without one."""
        return self._send(calls.act(run_id, "stop", {"now": "true"} if now else {}))

    def pause(self, run_id: str) -> Run:
        return self._send(calls.act(run_id, "pause"))

    def resume(self, run_id: str) -> Run:
        """Go on after a pause, a stop or a failure, from the newest checkpoint."""
        return self._send(calls.act(run_id, "resume"))

    def fork(
        self,
        run_id: str,
        *,
        checkpoint: int | None = None,
        name: str | None = None,
        changes: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Run:
        """Queue a run that goes on from a checkpoint of another (the newest unless `checkpoint` names a step), with
        `changes` laid on its configuration section by section.
        """
        values = {"checkpoint": checkpoint, "name": name, "changes": changes}
        return self._send(calls.fork(run_id, values, idempotency_key))

    def delete(self, run_id: str) -> None:
        """Delete a run that has ended, with its files, queues and history."""
        self._send(calls.delete(run_id))

    def steps(self, run_id: str, *, after: int = 0) -> Iterator[Step]:
        """Training steps above `after`, in order."""
        return self._pages(calls.steps(run_id, after))

    def evaluations(self, run_id: str) -> list[Evaluation]:
        return list(self._pages(calls.evaluations(run_id)))

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        return list(self._pages(calls.checkpoints(run_id)))

    def weight_pushes(self, run_id: str, *, limit: int = 100) -> list[WeightPush]:
        """Tries to bring rollout servers to new weights, newest first."""
        return self._send(calls.weight_pushes(run_id, limit)).items

    def samples(self, run_id: str, *, step: int | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """Groups with all their rollouts (`services.contracts.events.SamplesTaken`), newest step first."""
        return self._send(calls.samples(run_id, step, limit)).items

    def queues(self, run_id: str | None = None) -> list[Queue]:
        return list(self._pages(calls.queues(run_id)))

    def services(self) -> list[Service]:
        return list(self._pages(calls.services()))

    def run_files(self) -> list[RunFile]:
        """The run files that the deployment ships."""
        return list(self._pages(calls.run_files()))

    def keys(self) -> list[Key]:
        return list(self._pages(calls.keys()))

    def create_key(self, name: str, role: str = "read") -> NewKey:
        """Make a key with the role `read` or `operate`; its text is in the answer and nowhere else."""
        return self._send(calls.create_key(name, role))

    def revoke_key(self, key_id: str) -> None:
        self._send(calls.revoke_key(key_id))

    def ready(self) -> bool:
        """Whether the API answers and calls itself ready."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def events(self, run_id: str, *, after: str | None = None, follow: bool = True) -> Iterator[RunEvent]:
        """The run's events behind the one with the id `after`: those that are there, and (`follow`) new ones as they
        happen, until the connection ends. Raises `UnavailableError` where it breaks; `follow` mends that.
        """
        parser = EventParser()
        try:
            with self._http.stream(**calls.events(run_id, after, follow)) as answer:
                if not answer.is_success:
                    answer.read()
                    raise_for_status(answer)
                for text in answer.iter_text():
                    yield from parser.feed(text)
        except httpx.TransportError as error:
            raise connection_fault(self.url, error) from error

    def follow(self, run_id: str, *, after: str | None = None) -> Iterator[RunEvent]:
        """Every event once, in order, until the run has ended. A broken connection or an API that restarts is waited
        for; the stream then goes on behind the last event (Last-Event-ID). Other errors are raised.
        """
        failures = 0
        last: RunEvent | None = None
        while True:
            try:
                if calls.says_end(last) and self.run(run_id).has_ended:
                    return
                for event in self.events(run_id, after=after):
                    after, last, failures = event.id, event, 0
                    yield event
                    if calls.says_end(event) and self.run(run_id).has_ended:
                        return
            except UnavailableError:
                pass
            failures += 1
            time.sleep(calls.retry_seconds(failures))

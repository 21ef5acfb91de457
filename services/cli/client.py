"""Python clients of the REST API: `Client` (blocking) and `AsyncClient`, thin and typed.

    with Client() as client:
        run = client.create_run(config)
        for step in client.steps(run.id): ...

Answers that are not 2xx become the `TurnoutError` of their status, with the API's own sentence and remedy. Both
classes read TURNOUT_API_URL and TURNOUT_API_KEY where no arguments are given.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec

from services.cli import wire
from services.cli.models import Checkpoint, Evaluation, Queue, Run, RunEvent, Service, Step
from services.cli.wire import (
    Call,
    EventParser,
    Page,
    connection_fault,
    endpoint,
    is_loopback,
    parse,
    raise_for_status,
)

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
        self.url, headers = endpoint(url, key)
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout_seconds,
            transport=transport,
            trust_env=not is_loopback(self.url),
        )

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

    def _pages(self, call: Call[Page]) -> Iterator[Any]:
        while True:
            page = self._send(call)
            yield from page.items
            if page.next is None:
                return
            call = call.at(page.next)

    def create_run(self, config: dict[str, Any], *, idempotency_key: str | None = None) -> Run:
        """Queue a run; `config` is a `RunConfig` as JSON values. The key makes a repeated call return the first run."""
        return self._send(wire.create_run(config, idempotency_key))

    def runs(self, *, state: str | None = None) -> Iterator[Run]:
        """All runs, newest first."""
        return (msgspec.convert(item, Run, strict=False) for item in self._pages(wire.list_runs(state)))

    def run(self, run_id: str) -> Run:
        return self._send(wire.get_run(run_id))

    def stop(self, run_id: str, *, now: bool = False) -> Run:
        """End a run: with a checkpoint, or at once (`now`) without one."""
        return self._send(wire.act(run_id, "stop", {"now": "true"} if now else {}))

    def pause(self, run_id: str) -> Run:
        return self._send(wire.act(run_id, "pause"))

    def resume(self, run_id: str) -> Run:
        """Go on after a pause, a stop or a failure, from the newest checkpoint."""
        return self._send(wire.act(run_id, "resume"))

    def steps(self, run_id: str, *, after: int = 0) -> Iterator[Step]:
        """Training steps above `after`, in order."""
        return (msgspec.convert(item, Step, strict=False) for item in self._pages(wire.steps(run_id, after)))

    def evaluations(self, run_id: str) -> list[Evaluation]:
        return [
            msgspec.convert(item, Evaluation, strict=False) for item in self._pages(wire.part(run_id, "evaluations"))
        ]

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        return [
            msgspec.convert(item, Checkpoint, strict=False) for item in self._pages(wire.part(run_id, "checkpoints"))
        ]

    def samples(self, run_id: str, *, step: int | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """Groups with all their rollouts (`services.contracts.events.SamplesTaken`), newest step first."""
        return self._send(wire.samples(run_id, step, limit)).items

    def delete(self, run_id: str) -> None:
        """Delete a run that has ended, with its files, queues and history."""
        self._send(wire.delete(run_id))

    def queues(self, run_id: str | None = None) -> list[Queue]:
        return [msgspec.convert(item, Queue, strict=False) for item in self._pages(wire.queues(run_id))]

    def services(self) -> list[Service]:
        return [msgspec.convert(item, Service, strict=False) for item in self._pages(wire.services())]

    def ready(self) -> bool:
        """Whether the API answers and calls itself ready."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def events(self, run_id: str, *, after: str | None = None) -> Iterator[RunEvent]:
        """The run's events as they happen, until the connection ends. Pass the last `id` seen to go on."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        parser = EventParser()
        try:
            with self._http.stream("GET", wire.events_path(run_id), headers=headers, timeout=None) as answer:
                if not answer.is_success:
                    answer.read()
                    raise_for_status(answer)
                for line in answer.iter_lines():
                    yield from parser.feed(line)
        except httpx.TransportError as error:
            raise connection_fault(self.url, error) from error


class AsyncClient:
    """The same for asyncio programs."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_seconds: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, headers = endpoint(url, key)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=timeout_seconds,
            transport=transport,
            trust_env=not is_loopback(self.url),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _send(self, call: Call[T]) -> T:
        try:
            answer = await self._http.request(
                call.method, call.path, params=call.params, json=call.body, headers=call.headers
            )
        except httpx.TransportError as error:
            raise connection_fault(self.url, error) from error
        return parse(call, answer)

    async def _pages(self, call: Call[Page], kind: type[T]) -> AsyncIterator[T]:
        while True:
            page = await self._send(call)
            for item in page.items:
                yield msgspec.convert(item, kind, strict=False)
            if page.next is None:
                return
            call = call.at(page.next)

    async def create_run(self, config: dict[str, Any], *, idempotency_key: str | None = None) -> Run:
        return await self._send(wire.create_run(config, idempotency_key))

    def runs(self, *, state: str | None = None) -> AsyncIterator[Run]:
        return self._pages(wire.list_runs(state), Run)

    async def run(self, run_id: str) -> Run:
        return await self._send(wire.get_run(run_id))

    async def stop(self, run_id: str, *, now: bool = False) -> Run:
        return await self._send(wire.act(run_id, "stop", {"now": "true"} if now else {}))

    async def pause(self, run_id: str) -> Run:
        return await self._send(wire.act(run_id, "pause"))

    async def resume(self, run_id: str) -> Run:
        return await self._send(wire.act(run_id, "resume"))

    def steps(self, run_id: str, *, after: int = 0) -> AsyncIterator[Step]:
        return self._pages(wire.steps(run_id, after), Step)

    async def evaluations(self, run_id: str) -> list[Evaluation]:
        return [item async for item in self._pages(wire.part(run_id, "evaluations"), Evaluation)]

    async def checkpoints(self, run_id: str) -> list[Checkpoint]:
        return [item async for item in self._pages(wire.part(run_id, "checkpoints"), Checkpoint)]

    async def samples(self, run_id: str, *, step: int | None = None, limit: int = 20) -> list[dict[str, Any]]:
        return (await self._send(wire.samples(run_id, step, limit))).items

    async def delete(self, run_id: str) -> None:
        await self._send(wire.delete(run_id))

    async def queues(self, run_id: str | None = None) -> list[Queue]:
        return [item async for item in self._pages(wire.queues(run_id), Queue)]

    async def services(self) -> list[Service]:
        return [item async for item in self._pages(wire.services(), Service)]

    async def ready(self) -> bool:
        try:
            return (await self._http.get("/readyz")).is_success
        except httpx.TransportError:
            return False

    async def events(self, run_id: str, *, after: str | None = None) -> AsyncIterator[RunEvent]:
        """See `Client.events`."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        parser = EventParser()
        try:
            async with self._http.stream("GET", wire.events_path(run_id), headers=headers, timeout=None) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise_for_status(answer)
                async for line in answer.aiter_lines():
                    for event in parser.feed(line):
                        yield event
        except httpx.TransportError as error:
            raise connection_fault(self.url, error) from error

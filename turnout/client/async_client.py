"""`AsyncClient`: what `turnout.client.client.Client` does, for asyncio programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx

from services.contracts.errors import UnavailableError
from turnout.client import calls
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

if TYPE_CHECKING:
    from services.contracts.run_config import RunConfig

T = TypeVar("T")


class AsyncClient:
    """Methods and errors are those of `Client`; lists that may be long are asynchronous iterators."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_seconds: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        arguments = connection(url, key, timeout_seconds)
        self.url: str = arguments["base_url"]
        self._http = httpx.AsyncClient(**arguments, transport=transport)

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

    async def _pages(self, call: Call[Page[T]]) -> AsyncIterator[T]:
        while True:
            page = await self._send(call)
            for item in page.items:
                yield item
            if page.next is None:
                return
            call = call.at(page.next)

    async def create_run(self, config: RunConfig | dict[str, Any], *, idempotency_key: str | None = None) -> Run:
        return await self._send(calls.create_run(config, idempotency_key))

    def runs(self, *, state: str | None = None, name: str | None = None, sort: str | None = None) -> AsyncIterator[Run]:
        return self._pages(calls.list_runs(state, name, sort))

    async def run(self, run_id: str) -> Run:
        return await self._send(calls.get_run(run_id))

    async def stop(self, run_id: str, *, now: bool = False) -> Run:
        return await self._send(calls.act(run_id, "stop", {"now": "true"} if now else {}))

    async def pause(self, run_id: str) -> Run:
        return await self._send(calls.act(run_id, "pause"))

    async def resume(self, run_id: str) -> Run:
        return await self._send(calls.act(run_id, "resume"))

    async def fork(
        self,
        run_id: str,
        *,
        checkpoint: int | None = None,
        name: str | None = None,
        changes: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Run:
        values = {"checkpoint": checkpoint, "name": name, "changes": changes}
        return await self._send(calls.fork(run_id, values, idempotency_key))

    async def delete(self, run_id: str) -> None:
        await self._send(calls.delete(run_id))

    def steps(self, run_id: str, *, after: int = 0) -> AsyncIterator[Step]:
        return self._pages(calls.steps(run_id, after))

    async def evaluations(self, run_id: str) -> list[Evaluation]:
        return [item async for item in self._pages(calls.evaluations(run_id))]

    async def checkpoints(self, run_id: str) -> list[Checkpoint]:
        return [item async for item in self._pages(calls.checkpoints(run_id))]

    async def weight_pushes(self, run_id: str, *, limit: int = 100) -> list[WeightPush]:
        return (await self._send(calls.weight_pushes(run_id, limit))).items

    async def samples(self, run_id: str, *, step: int | None = None, limit: int = 20) -> list[dict[str, Any]]:
        return (await self._send(calls.samples(run_id, step, limit))).items

    async def queues(self, run_id: str | None = None) -> list[Queue]:
        return [item async for item in self._pages(calls.queues(run_id))]

    async def services(self) -> list[Service]:
        return [item async for item in self._pages(calls.services())]

    async def run_files(self) -> list[RunFile]:
        return [item async for item in self._pages(calls.run_files())]

    async def keys(self) -> list[Key]:
        return [item async for item in self._pages(calls.keys())]

    async def create_key(self, name: str, role: str = "read") -> NewKey:
        return await self._send(calls.create_key(name, role))

    async def revoke_key(self, key_id: str) -> None:
        await self._send(calls.revoke_key(key_id))

    async def ready(self) -> bool:
        try:
            return (await self._http.get("/readyz")).is_success
        except httpx.TransportError:
            return False

    async def events(self, run_id: str, *, after: str | None = None, follow: bool = True) -> AsyncIterator[RunEvent]:
        parser = EventParser()
        try:
            async with self._http.stream(**calls.events(run_id, after, follow)) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise_for_status(answer)
                async for text in answer.aiter_text():
                    for event in parser.feed(text):
                        yield event
        except httpx.TransportError as error:
            raise connection_fault(self.url, error) from error

    async def follow(self, run_id: str, *, after: str | None = None) -> AsyncIterator[RunEvent]:
        failures = 0
        last: RunEvent | None = None
        while True:
            try:
                if calls.says_end(last) and (await self.run(run_id)).has_ended:
                    return
                async for event in self.events(run_id, after=after):
                    after, last, failures = event.id, event, 0
                    yield event
                    if calls.says_end(event) and (await self.run(run_id)).has_ended:
                        return
            except UnavailableError:
                pass
            failures += 1
            await asyncio.sleep(calls.retry_seconds(failures))

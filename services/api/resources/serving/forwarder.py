"""Finds the rollout server that has a served model, and passes its answer through."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
from redis.asyncio import Redis
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from services.api.storage.database import Database
from services.api.storage.runs import Run, active_runs
from services.contracts.errors import ConfigurationError, NotFoundError, TurnoutError, UnavailableError
from services.contracts.heartbeat import ServiceRecord
from services.contracts.records import Model
from services.contracts.run_config import read_run_config
from services.contracts.serving import model_name
from services.contracts.states import TERMINAL_STATES
from services.contracts.streams import is_run_id
from services.runtime.presence import list_services

ANSWER_SECONDS = 600.0
"""Longest wait for the next piece of an answer; what is not streamed arrives in one piece."""
CONNECT_SECONDS = 5.0
MAX_CONNECTIONS = 512


class Wanted(msgspec.Struct, frozen=True):
    """The part of a request that decides where it goes."""

    model: str


class Forwarder:
    """Sends requests in OpenAI's format to rollout servers, to each server of a run about as many."""

    def __init__(self, redis: Redis, database: Database, service_token: str) -> None:
        self._redis = redis
        self._database = database
        # A client of its own, so that many answers at once do not keep weight pushes waiting for a connection.
        self._http = httpx.AsyncClient(
            trust_env=False,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=32),
        )
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if service_token:
            self._headers["Authorization"] = f"Bearer {service_token}"
        self._in_progress: Counter[str] = Counter()

    async def close(self) -> None:
        await self._http.aclose()

    async def models(self) -> list[Model]:
        """The models that can be asked now: one for each run with a server that samples it."""
        versions: dict[str, int] = {}
        for record in await self._servers():
            run_id = str(record.run_id)
            versions[run_id] = max(versions.get(run_id, 0), record.weight_version or 0)
        async with self._database.read() as session:
            runs = await active_runs(session)
        return [
            Model(
                id=run.id,
                created=int(run.created_at),
                name=run.name,
                root=run.config["model"]["path"],
                max_model_len=read_run_config(msgspec.json.encode(run.config)).max_model_tokens,
                weight_version=versions[run.id],
            )
            for run in runs
            if run.id in versions
        ]

    async def send(self, path: str, body: bytes) -> Response:
        """The answer of one of the model's servers; of another one if the first has no room or no engine.

        Raises:
            ConfigurationError: the body names no model.
            NotFoundError: the model does not exist, has ended, or has loaded another version.
            UnavailableError: no server of the model answers.
        """
        model = _model(body)
        run_id, version = model_name(model)
        servers = [record for record in await self._servers() if record.run_id == run_id]
        if not servers:
            raise await self._why_unserved(run_id)
        matching = [record for record in servers if version in (None, record.weight_version)]
        # Without a match, a heartbeat may be older than the weights; the server knows, and names its version.
        servers = sorted(matching or servers, key=lambda record: self._in_progress[record.instance])
        for record in servers[:-1]:
            try:
                answer = await self._ask(record, path, body)
            except UnavailableError:
                continue
            if answer.status_code not in (429, 503):
                return answer
            await answer.close()
        return await self._ask(servers[-1], path, body)

    async def _servers(self) -> list[ServiceRecord]:
        """Rollout servers with an engine that samples, or will once it has loaded weights."""
        return [
            record
            for record in await list_services(self._redis)
            if record.kind == "rollout" and record.run_id and record.state in ("ready", "updating")
        ]

    async def _why_unserved(self, run_id: str) -> TurnoutError:
        remedy = "GET /v1/models lists the models."
        async with self._database.read() as session:
            run = await session.get(Run, run_id) if is_run_id(run_id) else None
        if run is None:
            return NotFoundError(f"The model {run_id[:100]!r} does not exist.", remedy=remedy, field="model")
        if run.state in TERMINAL_STATES:
            return NotFoundError(
                f"Run {run_id} has ended ({run.state}), and no server has its weights.", remedy=remedy, field="model"
            )
        return UnavailableError(
            f"Run {run_id} is {run.state}, and none of its rollout servers is ready.",
            remedy="Try again when one is; GET /v1/services shows them.",
        )

    async def _ask(self, record: ServiceRecord, path: str, body: bytes) -> Passed:
        request = self._http.build_request("POST", record.url.rstrip("/") + path, content=body, headers=self._headers)
        self._in_progress[record.instance] += 1
        try:
            reply = await self._http.send(request, stream=True)
        except BaseException as error:
            self._in_progress[record.instance] -= 1
            if isinstance(error, (httpx.HTTPError, httpx.InvalidURL)):
                raise UnavailableError(
                    f"Rollout server {record.instance} does not answer: {type(error).__name__}.",
                    remedy="Try again; its log says more if it keeps failing.",
                ) from error
            raise
        return Passed(reply, lambda: self._in_progress.subtract([record.instance]))


class Passed(StreamingResponse):
    """A rollout server's answer, passed on as it arrives."""

    def __init__(self, reply: httpx.Response, on_close: Any) -> None:
        super().__init__(
            self._pieces(), reply.status_code, media_type=reply.headers.get("content-type", "application/json")
        )
        self._reply = reply
        self._on_close = on_close
        self._is_open = True

    async def _pieces(self) -> AsyncIterator[bytes]:
        async for piece in self._reply.aiter_raw():
            yield piece

    async def close(self) -> None:
        """Close the connection to the server, which then stops sampling for it."""
        if self._is_open:
            self._is_open = False
            self._on_close()
            await self._reply.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(self.close())


def _model(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=Wanted).model
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigurationError(
            f"The body must be a JSON object with the text field model: {error}.",
            remedy="GET /v1/models lists the models.",
            field="model",
        ) from error

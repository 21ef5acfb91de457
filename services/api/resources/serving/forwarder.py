"""Finds the rollout server that has a model, or has it loaded onto an idle one, and passes its answer through."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
import msgspec
from redis.asyncio import Redis
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.api.control.on_demand import OnDemand, OnDemandModel
from services.api.resources.serving.loading import Loadable, Loading
from services.api.storage.database import Database
from services.api.storage.runs import active_runs
from services.contracts.errors import (
    ConfigurationError,
    ConflictError,
    NotFoundError,
    OverloadedError,
    TurnoutError,
    UnavailableError,
)
from services.contracts.heartbeat import ServiceRecord
from services.contracts.records import Model
from services.contracts.run_config import read_run_config
from services.contracts.serving import ON_DEMAND, model_name, on_demand_headers
from services.runtime.presence import list_services

ANSWER_SECONDS = 600.0
"""Longest wait for the next piece of an answer; what is not streamed arrives in one piece."""
CONNECT_SECONDS = 5.0
MAX_CONNECTIONS = 512
NOT_LOADED = 404
"""Status of a server that has another version."""
TRY_ANOTHER = (429, 503)
"""Statuses of a server whose share is used up, and of one that has no engine."""
RETRY_SECONDS = {429: "5", 503: "30"}
"""When clients should send a request again that was answered with this status. OpenAI's do so automatically."""

ERRORS: Mapping[int, type[TurnoutError]] = {
    error.status: error for error in (NotFoundError, ConflictError, OverloadedError, UnavailableError)
} | {400: ConfigurationError}


class Wanted(msgspec.Struct, frozen=True):
    """The part of a request that decides where it goes."""

    model: str


class Forwarder:
    """Sends requests in OpenAI's format to rollout servers, to each server of a run about as many."""

    def __init__(
        self, redis: Redis, database: Database, on_demand: OnDemand, loading: Loading, service_token: str
    ) -> None:
        self._redis = redis
        self._database = database
        self._on_demand = on_demand
        self._loading = loading
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
        """The models that can be asked now: one for each run with a server that samples it, and those on demand."""
        versions: dict[str, int] = {}
        for record in await self._servers():
            run_id = str(record.run_id)
            versions[run_id] = max(versions.get(run_id, 0), record.weight_version or 0)
        async with self._database.read() as session:
            runs = await active_runs(session)
        live = [
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
        return live + [_listed(model) for model in self._on_demand.models]

    async def model(self, name: str) -> Model:
        """One model that can be asked now, or that can be loaded.

        Raises:
            NotFoundError: there is no such model.
            UnavailableError: its run has no server yet.
        """
        run_id, _, version = name.partition("@")
        for found in await self.models():
            if found.id == name or (found.id == run_id and version == str(found.weight_version)):
                return found
        loadable = await self._loading.find(name, may_download=True)  # which only looks
        return next((found for found in await self.models() if found.id == loadable.name), _unloaded(loadable))

    async def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer to a request that is not streamed, of a model that need not be downloaded. Raises as `send`,
        and what the server answers as an error."""
        answer = await self.send(path, msgspec.json.encode(body), may_download=False)
        try:
            values: dict[str, Any] = msgspec.json.decode(b"".join([piece async for piece in answer.pieces()]))
        except httpx.HTTPError as error:
            raise UnavailableError(f"The answer broke off: {type(error).__name__}.", remedy="Try again.") from error
        finally:
            await answer.close()
        if answer.status_code >= 400:
            raise ERRORS.get(answer.status_code, UnavailableError)(values["error"]["message"])
        return values

    async def send(self, path: str, body: bytes, *, may_download: bool = True) -> Passed:
        """The answer of one of the model's servers, after loading the model if no server has it.

        Raises:
            ConfigurationError: the body names no model.
            NotFoundError: the model does not exist, or its weights are not on disk.
            ForbiddenError: the model is one of the hub, and not `may_download`.
            UnavailableError: no server of the model answers, or none is free to load it.
        """
        name = _model(body)
        servers, is_pinned = _of_run(await self._servers(), name)
        if servers:
            answer = await self._spread(servers, path, body, is_pinned)
            if not (is_pinned and answer.status_code == NOT_LOADED):
                return answer
            await answer.close()
        model = self._on_demand.find(name)
        if model is None:
            loadable = await self._loading.find(name, may_download=may_download)
            model = await self._on_demand.ask_for(loadable.name, loadable.make)
        await self._on_demand.ready(model)
        return await self._ask_on_demand(model, path, body)

    async def _spread(self, servers: list[ServiceRecord], path: str, body: bytes, is_pinned: bool) -> Passed:
        """The answer of the server with the fewest requests in progress; of another one if that has no room, no
        engine, or no longer the pinned version."""
        servers = sorted(servers, key=lambda record: self._in_progress[record.instance])
        for record in servers[:-1]:
            try:
                answer = await self._ask(record, path, body)
            except UnavailableError:
                continue
            is_elsewhere = is_pinned and answer.status_code == NOT_LOADED
            if answer.status_code not in TRY_ANOTHER and not is_elsewhere:
                return answer
            await answer.close()
        return await self._ask(servers[-1], path, body)

    async def _ask_on_demand(self, model: OnDemandModel, path: str, body: bytes) -> Passed:
        """The answer of the model's server. Releases the model once it is complete."""
        try:
            servers = [record for record in await self._servers() if record.run_id == model.id]
            if not servers:
                raise UnavailableError(model.fault or f"The model {model.name} is gone.", remedy="Send it again.")
            return await self._ask(servers[0], path, body, on_demand_headers(model.id, model.name), model.release)
        except BaseException:
            model.release()
            raise

    async def _servers(self) -> list[ServiceRecord]:
        """Rollout servers with an engine that samples, or will once it has loaded weights."""
        return [
            record
            for record in await list_services(self._redis)
            if record.kind == "rollout" and record.run_id and record.state in ("ready", "updating")
        ]

    async def _ask(
        self,
        record: ServiceRecord,
        path: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> Passed:
        """The server's answer. Calls `on_close` once it is complete, unless this raises an error."""
        url = record.url.rstrip("/") + path
        request = self._http.build_request("POST", url, content=body, headers={**self._headers, **(headers or {})})
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

        def close() -> None:
            self._in_progress[record.instance] -= 1
            on_close()

        return Passed(reply, close)


class Passed(StreamingResponse):
    """A rollout server's answer, passed on as it arrives."""

    def __init__(self, reply: httpx.Response, on_close: Callable[[], None]) -> None:
        kind = reply.headers.get("content-type", "application/json")
        super().__init__(self.pieces(), reply.status_code, retry_header(reply.status_code), media_type=kind)
        self._reply = reply
        self._on_close = on_close
        self._is_open = True

    async def pieces(self) -> AsyncIterator[bytes]:
        """Reads the body; `close` ends the connection."""
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


def retry_header(status: int) -> dict[str, str]:
    """The header that tells clients when to try again."""
    return {"Retry-After": RETRY_SECONDS[status]} if status in RETRY_SECONDS else {}


def _of_run(servers: list[ServiceRecord], name: str) -> tuple[list[ServiceRecord], bool]:
    """Servers of the run that `name` asks for, and whether it asks for one version. Those that have the version; all if
    none does, since a heartbeat may be older than the weights, and the server knows."""
    run_id, is_pinned, _ = name.partition("@")
    servers = [record for record in servers if record.run_id == run_id and not run_id.startswith(ON_DEMAND)]
    if not is_pinned or not servers:
        return servers, False
    version = model_name(name)[1]
    return [record for record in servers if record.weight_version == version] or servers, True


def _listed(model: OnDemandModel) -> Model:
    return Model(
        id=model.name,
        created=int(model.created_at),
        name=model.name,
        root=model.root,
        max_model_len=model.config.max_model_tokens,
        weight_version=model.version,
        state="loaded" if model.is_ready else "loading",
    )


def _unloaded(model: Loadable) -> Model:
    return Model(
        id=model.name,
        created=0,
        name=model.name,
        root=model.root,
        max_model_len=model.config.max_model_tokens,
        weight_version=model.version,
        state="unloaded",
    )


def _model(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=Wanted).model
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigurationError(
            f"The body must be a JSON object with the text field model: {error}.",
            remedy="GET /v1/models lists the models.",
            field="model",
        ) from error

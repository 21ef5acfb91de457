"""HTTP of a rollout server: its current weights, a whole update in one call, and vLLM's own routes under /v1/engine.

vLLM's router talks to an engine client. It gets `GuardedClient`, which offers the calls of a weight update and nothing
that could change weights without verification.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse

from services.contracts.errors import ConfigurationError, ConflictError, TurnoutError, UnavailableError
from services.rollout.vllm.server import ASLEEP, EngineServer
from services.runtime.http.access import is_service, unauthorized
from services.runtime.http.problem import problem
from services.runtime.logs import get_logger
from services.runtime.settings import Settings

log = get_logger(__name__)
PREFIX = "/v1/engine"


class WantedWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `PUT /v1/weights`: one version of the weight store."""

    version: int
    path: str
    checksum: str
    transfer: dict[str, Any] | None = None
    """How to get it from the learner itself (`services.contracts.transports`). vLLM's worker validates it."""


class GuardedClient:
    """The part of vLLM's engine client that the API's pusher may use."""

    def __init__(self, server: EngineServer, busy: Callable[[], bool]) -> None:
        self._server = server
        self._busy = busy

    def __getattr__(self, name: str) -> Any:
        raise unsupported(name)

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        await self._free().pause_generation(mode=mode, clear_cache=clear_cache)

    async def resume_generation(self) -> None:
        await self._free().resume_generation()

    async def is_paused(self) -> bool:
        return self._server.phase != "serving"

    async def init_weight_transfer_engine(self, request: Any) -> None:
        """Nothing to do: the weight store needs no handshake."""

    async def shutdown_weight_transfer_engine(self) -> None:
        """Nothing to release."""

    async def start_weight_update(self) -> None:
        await self._free().start_weight_update()

    async def update_weights(self, request: Any) -> None:
        await self._free().update_weights(request.update_info)

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        await self._free().finish_weight_update(weight_version)

    async def get_weight_version(self) -> str:
        return str(self._server.version)

    async def compute_weight_checksums(self) -> Any:
        server = self._free()  # a sleeping engine has no weights to read
        return await server.while_attached(server.require().compute_weight_checksums())

    @property
    def vllm_config(self) -> Any:
        return self._server.require().vllm_config

    def _free(self) -> EngineServer:
        require_free(self._server, self._busy)
        return self._server


def unsupported(name: str) -> ConflictError:
    return ConflictError(f"This server does not support {name}.", remedy="Push weights with the four-phase protocol.")


def require_free(server: EngineServer, busy: Callable[[], bool]) -> None:
    """Raise `ConflictError` while the server runs an update itself, or is in the middle of a pushed one."""
    if busy() or server.is_busy:
        raise ConflictError("This server is loading weights.", remedy="Try again when it has finished.")
    if server.phase == "asleep":
        raise ConflictError(ASLEEP, remedy="It loads the newest published weights when it wakes up.")


def add_routes(app: FastAPI, server: EngineServer, settings: Settings, busy: Callable[[], bool]) -> FastAPI:
    """Add the weight routes. Returns the application for `include_vllm`, once vLLM is imported."""

    @app.get("/v1/weights")
    async def weights(request: Request) -> Response:
        if not is_service(request, settings):
            return unauthorized()
        return JSONResponse({"version": server.version, "checksum": server.checksum, "run_id": server.run_id})

    @app.put("/v1/weights")
    async def load(request: Request) -> Response:
        """Run all phases of an update, until one fails. Responds once the server is sampling again."""
        if not is_service(request, settings):
            return unauthorized()
        try:
            require_free(server, busy)
            wanted = msgspec.json.decode(await request.body(), type=WantedWeights)
            seconds = await server.load(wanted.version, wanted.path, wanted.checksum, wanted.transfer)
        except TurnoutError as error:
            return refusal(error)
        except msgspec.DecodeError as error:
            return refusal(ConfigurationError(f"The body must be an object with version, path and checksum: {error}."))
        log.info("weights loaded", weight_version=wanted.version, seconds=seconds)
        return JSONResponse({"version": server.version, "checksum": server.checksum, "seconds": seconds})

    inner = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    inner.state.engine_client = GuardedClient(server, busy)

    @inner.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if not is_service(request, settings):
            return unauthorized()
        if server.engine is None:
            return refusal(
                UnavailableError(
                    "This rollout server has no engine: no run is assigned, or the engine is starting.",
                    remedy="Wait until its state is ready.",
                )
            )
        return await call_next(request)

    @inner.exception_handler(TurnoutError)
    async def named(_: Request, error: TurnoutError) -> Response:
        return refusal(error)

    add_refusing_routes(inner)
    app.mount(PREFIX, inner)
    return inner


def add_refusing_routes(inner: FastAPI) -> None:
    """Add those of vLLM's routes whose own handlers answer 500 to every error, a refusal included. The first route that
    is added for a path answers."""
    client: GuardedClient = inner.state.engine_client

    @inner.post("/pause")
    async def pause(
        mode: Annotated[Literal["abort", "wait", "keep"], Query()] = "abort",
        clear_cache: Annotated[bool, Query()] = True,
    ) -> Response:
        await client.pause_generation(mode=mode, clear_cache=clear_cache)
        return JSONResponse({"status": "paused"})

    @inner.post("/resume")
    async def resume() -> Response:
        await client.resume_generation()
        return JSONResponse({"status": "resumed"})

    @inner.post("/abort_requests")
    async def abort_requests() -> Response:
        raise unsupported("abort_requests")


def include_vllm(inner: FastAPI) -> None:
    """Add vLLM's routes. Call `environment.import_vllm` first."""
    from vllm.entrypoints.rl.online.api_router import router

    assert isinstance(router, APIRouter)
    inner.include_router(router)


def refusal(error: TurnoutError) -> Response:
    """The problem response for an error, with its remedy in the detail."""
    return problem(error.status, error.title, str(error), field=error.field)

"""OpenAI's API on a rollout server, by vLLM's serving classes over the engine that samples the run.

A request names the run, or `run@version` for one version only; one for a model on demand says so in its headers. It
uses a slot of the `Share`; beyond what may wait it is refused with 429. The classes are imported with the first
request, since training alone does not need them.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from services.contracts.errors import (
    ConfigurationError,
    NotFoundError,
    OverloadedError,
    TurnoutError,
    UnavailableError,
)
from services.contracts.serving import ON_DEMAND, fingerprint, model_name, on_demand_model, openai_error
from services.rollout import metrics
from services.rollout.allowance import Allowance
from services.rollout.sampling.prompts import stop_tokens
from services.rollout.serving.client import ServedClient
from services.rollout.serving.parsers import Parsers, check_tools
from services.rollout.serving.share import Share
from services.rollout.vllm.server import EngineServer
from services.runtime.http.access import is_service, unauthorized
from services.runtime.logs import get_logger
from services.runtime.settings import Settings

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = get_logger(__name__)
Endpoint = Literal["chat", "completions"]
PATHS: dict[str, Endpoint] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """What serves one run with one engine."""

    engine: AsyncLLM
    run_id: str
    share: Share
    stop_token_ids: list[int]
    parsers: Parsers
    classes: dict[Endpoint, Any]
    """vLLM's serving classes. Each request gets a shallow copy with an engine client of its own."""


class Serving:
    """Answers requests in OpenAI's format."""

    def __init__(self, server: EngineServer, settings: Settings, allowance: Allowance) -> None:
        self._server = server
        self._allowance = allowance
        self._share = settings.serve_share
        self._parsers = Parsers(settings.tool_parser, settings.reasoning_parser)
        self._served: Served | None = None
        self._turn = asyncio.Lock()

    async def answer(self, endpoint: Endpoint, request: Request) -> Response:
        """The answer, an error in OpenAI's format included."""
        try:
            response = await self._answer(endpoint, request)
        except TurnoutError as error:
            response = JSONResponse(*openai_error(error))
        metrics.SERVED_REQUESTS.labels(endpoint, response.status_code).inc()
        return response

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response:
        served = await self._current()
        wanted = parsed(endpoint, await request.body())
        named = self._on_demand_name(served, request)
        pinned = self._pinned(served, wanted.model) if named is None else None
        check_wanted(wanted, served.share)
        check_tools(wanted, served.parsers.tool)
        if served.share.is_full:
            raise OverloadedError(
                f"{served.share.num_requests} requests are being answered or waiting, as many as may.",
                remedy="Send it again later. TURNOUT_SERVE_SHARE gives served requests more of the engine.",
            )
        wanted.model = named or served.run_id
        serving = copy.copy(served.classes[endpoint])
        serving.models = called(serving.models, wanted.model)

        seen: set[int] = set()

        def say_versions(versions: set[int]) -> None:
            seen.update(versions)
            serving.system_fingerprint = named or fingerprint(served.run_id, seen)

        serving.system_fingerprint = None
        serving.engine_client = ServedClient(self._server, served.share, served.stop_token_ids, pinned, say_versions)
        served.share.num_requests += 1
        response: Response | None = None
        try:
            response = await create(endpoint, serving, wanted, request, served.share)
        finally:
            if not isinstance(response, Stream):  # a stream's ends when it has been sent
                served.share.num_requests -= 1
        return response

    def _on_demand_name(self, served: Served, request: Request) -> str | None:
        """The name of the model on demand that the request is for; None if it is for a run."""
        if (wanted := on_demand_model(request.headers)) is None:
            return None
        model_id, name = wanted
        if model_id != served.run_id:
            raise UnavailableError(f"The rollout server left the model {name}.", remedy="Send the request again.")
        return name

    def _pinned(self, served: Served, model: str | None) -> int | None:
        """The version that the model's name asks for. Raises `NotFoundError` unless it can be served now."""
        run_id, version = model_name(model or served.run_id)
        if run_id != served.run_id:
            raise NotFoundError(
                f"The model {model!r} is not served here; {served.run_id} is.",
                remedy="GET /v1/models lists the models.",
                field="model",
            )
        if version is not None and version != self._server.version:
            raise NotFoundError(
                f"Version {version} of run {run_id} is not loaded; version {self._server.version} is.",
                remedy=f"Ask model {run_id} for the newest version.",
                field="model",
            )
        return version

    async def _current(self) -> Served:
        """What serves the attached engine, made when it is first needed."""
        engine, run_id = self._server.require(), self._server.run_id
        if self._server.phase in ("absent", "failed") or run_id is None:
            raise UnavailableError("This rollout server is not sampling.", remedy="Wait until its state is ready.")
        async with self._turn:
            if self._served is None or (self._served.engine, self._served.run_id) != (engine, run_id):
                # Nothing is trained with a model on demand, so nothing is kept from its clients.
                part = 1.0 if self._share and run_id.startswith(ON_DEMAND) else self._share
                share = Share(engine.vllm_config.scheduler_config.max_num_seqs, part, self._allowance)
                arguments = self._server.chat_template_kwargs
                try:
                    parsers = await asyncio.to_thread(self._parsers.fitting, engine.renderer.tokenizer)
                    classes = await asyncio.to_thread(serving_classes, engine, run_id, arguments, parsers)
                except (
                    Exception
                ) as error:  # whatever vLLM's classes object to, such as a tokenizer without the parser's tokens
                    log.exception("serving classes not started", parsers=self._parsers)
                    raise UnavailableError(
                        f"vLLM cannot serve this model: {error}",
                        remedy="Check TURNOUT_TOOL_PARSER and TURNOUT_REASONING_PARSER, and see the server's log.",
                    ) from error
                config = engine.vllm_config.model_config
                stops = stop_tokens(config.model, config.hf_text_config)
                self._served = Served(engine, run_id, share, stops, parsers, classes)
        return self._served


def serving_classes(
    engine: AsyncLLM, run_id: str, template_arguments: dict[str, Any], parsers: Parsers
) -> dict[Endpoint, Any]:
    """vLLM's serving classes over `engine`, which render prompts as training does. Imports them, so run it in a
    thread."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.renderers.online_renderer import OnlineRenderer

    models = OpenAIServingModels(engine, [BaseModelPath(name=run_id, model_path=engine.model_config.model)])
    chat: dict[str, Any] = {
        "request_logger": None,
        "chat_template": None,
        "chat_template_content_format": "auto",
        "enable_auto_tools": bool(parsers.tool),
        "tool_parser": parsers.tool or None,
        "reasoning_parser": parsers.reasoning,
        "default_chat_template_kwargs": template_arguments,
    }
    renderer = OnlineRenderer(engine.model_config, engine.renderer, **chat)
    return {
        "chat": OpenAIServingChat(engine, models, "assistant", online_renderer=renderer, **chat),
        "completions": OpenAIServingCompletion(engine, models, online_renderer=renderer, request_logger=None),
    }


def parsed(endpoint: Endpoint, body: bytes) -> Any:
    """vLLM's request. Raises `ConfigurationError` naming the field that is wrong."""
    from pydantic import ValidationError
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    kind = ChatCompletionRequest if endpoint == "chat" else CompletionRequest
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{field or 'The body'}: {first['msg']}.", field=field or None) from error
    except ValueError as error:  # vLLM's own checks of several fields together
        raise ConfigurationError(str(error), field=getattr(error, "parameter", None)) from error


def called(models: Any, name: str) -> Any:
    """vLLM's list of models with its one model under this name, which goes into the answer."""
    from vllm.entrypoints.openai.models.protocol import BaseModelPath

    models = copy.copy(models)
    models.registry = copy.copy(models.registry)
    paths = [BaseModelPath(name=name, model_path=models.base_model_paths[0].model_path)]
    models.base_model_paths = models.registry.base_model_paths = paths
    return models


def check_wanted(wanted: Any, share: Share) -> None:
    """Raise `ConfigurationError` for what a share of an engine cannot do, and `UnavailableError` if there is none."""
    if not share.num_slots:
        raise UnavailableError(
            "This deployment serves no requests: TURNOUT_SERVE_SHARE is 0.", remedy="Set it above 0."
        )
    if wanted.use_beam_search:
        raise ConfigurationError(
            "Beam search is not supported.", remedy="Leave use_beam_search out.", field="use_beam_search"
        )
    if (wanted.n or 1) > share.num_slots:
        raise ConfigurationError(
            f"n is {wanted.n}, but served requests have {share.num_slots} of the engine's sequences.",
            remedy="Ask for fewer, or raise TURNOUT_SERVE_SHARE.",
            field="n",
        )


class Stream(StreamingResponse):
    """A streamed answer, which counts as one of the share's requests until it ends or its client leaves."""

    def __init__(self, content: Any, share: Share) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._of_share = share

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._of_share.num_requests -= 1


async def create(endpoint: Endpoint, serving: Any, wanted: Any, request: Request, share: Share) -> Response:
    """Let vLLM's class answer, or stop it if the client leaves."""
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
    from vllm.entrypoints.serve.utils.api_utils import with_cancellation

    call = serving.create_chat_completion if endpoint == "chat" else serving.create_completion
    try:
        answer = await with_cancellation(call)(wanted, request)
    except Exception as error:  # noqa: BLE001 - vLLM answers whatever its classes raise in this way
        if isinstance(error.__cause__, TurnoutError):
            raise error.__cause__ from None
        answer = create_error_response(error)
    if answer is None:
        return Response(status_code=499)
    if isinstance(answer, ErrorResponse):
        if answer.error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("request not served", error=answer.error.message)
        return JSONResponse(answer.model_dump(), answer.error.code)
    if hasattr(answer, "model_dump"):
        return JSONResponse(answer.model_dump())
    return Stream(answer, share)


def add_routes(app: FastAPI, server: EngineServer, settings: Settings, allowance: Allowance) -> None:
    """Add the routes of `Serving`, for the API alone."""
    serving = Serving(server, settings, allowance)

    async def respond(request: Request) -> Response:
        if not is_service(request, settings):
            return unauthorized()
        return await serving.answer(PATHS[request.url.path], request)

    for path in PATHS:
        app.post(path)(respond)

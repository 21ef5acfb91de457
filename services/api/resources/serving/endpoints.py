"""REST: the policies of runs, checkpoints and base models, in OpenAI's format."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from services.api.http.problems import responses
from services.api.http.provide import Provided
from services.api.http.records import answer_one, schema
from services.api.resources.serving.forwarder import Forwarder, retry_header
from services.api.storage.keyring import Caller
from services.contracts.errors import TurnoutError
from services.contracts.records import Model, ModelList
from services.contracts.serving import openai_error

T = TypeVar("T")
router = APIRouter(prefix="/v1", tags=["serving"])
Forward = Annotated[Forwarder, Provided(Forwarder)]
ModelItem = schema("Model", Model, ())
Models = schema("ModelList", ModelList, ())


class ServingFault(BaseModel):
    """What is wrong, in OpenAI's format."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    message: str
    """One sentence for people, and the remedy."""
    type: str
    param: str | None
    """The field of the request that is wrong; null if none is."""
    code: str | int | None


class ServingError(BaseModel):
    """An error in OpenAI's format."""

    error: ServingFault


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of an endpoint: its own in OpenAI's format, those of access and limits as problems."""
    return responses(401) | {
        status: {**problem, "model": ServingError} for status, problem in responses(*statuses).items()
    }


def body_of(field: str) -> dict[str, Any]:
    """OpenAPI of a request. All other fields are OpenAI's and vLLM's, and are passed on as they are."""
    properties = {"model": {"type": "string"}, field: {}, "stream": {"type": "boolean"}}
    schema = {"type": "object", "required": ["model", field], "properties": properties}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}},
    **errors(400, 403, 404, 409, 413, 429, 500, 501, 503),
}


@router.get("/models", response_model=Models, responses=responses(401, 503))
async def list_models(forwarder: Forward) -> Response:
    """The models that answer now: every run with a rollout server that samples it, and the models that were loaded on
    demand. Others can be asked, too: `run@version` of any run with these weights on disk, a run that has ended, and
    base models by their path."""
    return answer_one(Models, ModelList(data=await forwarder.models()))


@router.get("/models/{model:path}", response_model=ModelItem, responses=errors(404, 503))
async def show_model(model: str, forwarder: Forward) -> Response:
    """One model that can be asked; `state` says whether it must be loaded first."""
    try:
        return answer_one(ModelItem, await forwarder.model(model))
    except TurnoutError as error:
        return refusal(error)


def refusal(error: TurnoutError) -> JSONResponse:
    """The error in OpenAI's format."""
    body, status = openai_error(error)
    return JSONResponse(body, status, retry_header(status))


@router.post("/chat/completions", responses=ANSWER, openapi_extra=body_of("messages"))
async def chat(request: Request, forwarder: Forward) -> Response:
    """The model's answer to a conversation, as in OpenAI's API; with `stream`, as server-sent events. Waits for a model
    that is not loaded while an idle rollout server loads it."""
    return await _forwarded(request, forwarder)


@router.post("/completions", responses=ANSWER, openapi_extra=body_of("prompt"))
async def complete(request: Request, forwarder: Forward) -> Response:
    """How the model continues a text, as in OpenAI's API; otherwise as a conversation."""
    return await _forwarded(request, forwarder)


async def _forwarded(request: Request, forwarder: Forwarder) -> Response:
    body = await request.body()
    caller: Caller | None = getattr(request.state, "caller", None)
    call = forwarder.send(request.url.path, body, may_download=caller is None or caller.role == "operate")
    try:
        answer = await while_connected(request, call)
    except TurnoutError as error:
        return refusal(error)
    return answer or Response(status_code=499)


async def while_connected(request: Request, call: Coroutine[Any, Any, T]) -> T | None:
    """The call's result; None if the client left first, which cancels the call. The body must have been read."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.create_task(call), asyncio.create_task(left())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        leaving.cancel()
        task.cancel()

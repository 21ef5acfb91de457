"""REST: API keys. Only keys with the role `operate` may call these, but every key may ask what its role is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from services.api.http.bodies import BoundedRoute
from services.api.http.problems import responses
from services.api.http.provide import Provided
from services.api.http.records import answer, answer_one, listing, schema
from services.api.live.broadcaster import Broadcaster
from services.api.storage.keyring import Caller, Keyring
from services.contracts.records import Key, NewKey, Role

PREFIX = "/v1/keys"
router = APIRouter(prefix=PREFIX, tags=["keys"], route_class=BoundedRoute)
role_router = APIRouter(tags=["keys"], route_class=BoundedRoute)
Keys = Annotated[Keyring, Provided(Keyring)]


class KeyRequest(BaseModel):
    """A key to create."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
    """Who uses the key, or what it is for."""
    role: Role = "read"
    """read: view everything except keys. use: ask the policies, and nothing else. operate: everything, also start,
    change and delete runs, and manage keys."""


class CallerRole(BaseModel):
    """What a key may do."""

    role: Role


KeyItem = schema("KeyItem", Key)
NewKeyItem = schema("NewKey", NewKey)
KeyList = listing("KeyList", KeyItem)


@router.post("", status_code=201, response_model=NewKeyItem, responses=responses(400, 401, 409, 413, 422, 503))
async def create_key(request: KeyRequest, keys: Keys) -> Response:
    """Create a key. Only this response contains its text."""
    key = await keys.create(request.name, request.role)
    return answer_one(NewKeyItem, key, created_at=f"{PREFIX}/{key.id}")


@router.get("", response_model=KeyList, responses=responses(401, 503))
async def list_keys(keys: Keys) -> Response:
    """Every created key, oldest first, without its text. TURNOUT_API_KEY is not among them."""
    return answer(KeyItem, await keys.list())


@role_router.get("/v1/role", responses=responses(401, 503))
async def show_caller(request: Request) -> CallerRole:
    """What the request's key may do. Any key may ask; without keys, everyone may do everything."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return CallerRole(role="operate" if caller is None else caller.role)


@router.delete("/{key_id}", status_code=204, responses=responses(401, 404, 422, 503))
async def revoke_key(key_id: str, keys: Keys, broadcaster: Annotated[Broadcaster, Provided(Broadcaster)]) -> None:
    """Revoke a key immediately, and end the event streams that were opened with it."""
    await keys.revoke(key_id)
    broadcaster.wake_all()

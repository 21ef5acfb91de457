"""What the API says of services and queues."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from services.api.live.queues import QueueState
from services.contracts.heartbeat import ServiceKind, ServiceState


class ServiceItem(BaseModel):
    """One live instance, as its heartbeat says. Times are Unix seconds."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    kind: ServiceKind
    instance: str
    url: str
    state: ServiceState
    pid: int
    started_at: float
    at: float
    run_id: str | None
    weight_version: int | None
    waiting_for: str
    waiting_since: float | None
    tokens_total: int
    details: dict[str, str]
    out_of_rotation: bool = False
    """A rollout server that failed to take weights and is kept from sampling until an update succeeds."""
    weight_error: str = ""
    """Why."""


class ServiceList(BaseModel):
    items: list[ServiceItem]


class QueueList(BaseModel):
    items: list[QueueState]

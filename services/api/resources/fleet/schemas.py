"""Responses about services and queues."""

from __future__ import annotations

from services.api.http.records import listing, schema
from services.contracts.records import QueueState, Service

ServiceItem = schema("ServiceItem", Service, hidden=("tokens_unfinished",))
QueueItem = schema("QueueState", QueueState, hidden=())
ServiceList = listing("ServiceList", ServiceItem)
QueueList = listing("QueueList", QueueItem)

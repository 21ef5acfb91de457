"""What the REST API answers, as far as the command line and Python callers use it. Unknown fields are passed over."""

from __future__ import annotations

from typing import Any

import msgspec

from services.contracts.heartbeat import ServiceKind, ServiceState
from services.contracts.records import Checkpoint as Checkpoint
from services.contracts.records import Evaluation as Evaluation
from services.contracts.records import Step as Step
from services.contracts.records import WeightPush as WeightPush
from services.contracts.states import TERMINAL_STATES, RunState


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all answers."""


class ForkedFrom(Model, frozen=True, kw_only=True):
    """Where a fork comes from."""

    run_id: str
    step: int


class Run(Model, frozen=True, kw_only=True):
    """One run. Times are Unix seconds."""

    id: str
    name: str
    state: RunState
    reason: str = ""
    """Why the run is in its state, where that needs a word."""
    desired: str = ""
    """What was asked for last: running, paused, stopped or stopped_now."""
    step: int = 0
    """Newest finished training step."""
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    num_steps: int = 0
    """Training steps that the run asks for."""
    objective: str = ""
    metrics: dict[str, float] = {}
    """Metrics of the newest step."""
    groups: dict[str, int] = {}
    """Ledger of prompt groups: fed, trained, in_flight, dropped_<reason>. Empty in lists."""
    config: dict[str, Any] = {}
    """The checked run configuration, defaults filled in. Empty in lists."""
    forked_from: ForkedFrom | None = None
    learner: str | None = None
    rollout_servers: list[str] = []

    @property
    def has_ended(self) -> bool:
        return self.state in TERMINAL_STATES


class RunFile(Model, frozen=True, kw_only=True):
    """A run file that the deployment ships."""

    name: str
    text: str
    """YAML."""


class Key(Model, frozen=True, kw_only=True):
    """An API key without its text."""

    id: str
    name: str
    role: str
    """read or operate."""
    created_at: float = 0.0


class NewKey(Key, frozen=True, kw_only=True):
    """A key that was just made."""

    key: str
    """Its text, shown this once."""


class RunEvent(Model, frozen=True, kw_only=True):
    """One server-sent event. `id` goes into `after` to go on behind it."""

    id: str
    type: str
    data: dict[str, Any]


class Service(Model, frozen=True, kw_only=True):
    """One live service instance, as its heartbeat says (`services.contracts.heartbeat.ServiceRecord`)."""

    kind: ServiceKind
    instance: str
    state: ServiceState
    url: str = ""
    pid: int = 0
    started_at: float = 0.0
    at: float = 0.0
    run_id: str | None = None
    weight_version: int | None = None
    waiting_for: str = ""
    waiting_since: float | None = None
    tokens_total: int = 0
    details: dict[str, str] = {}
    out_of_rotation: bool = False
    """A rollout server that failed to take weights and is kept from sampling until it has them."""
    weight_error: str = ""


class Queue(Model, frozen=True, kw_only=True):
    """One queue of a run."""

    run_id: str
    stream: str
    depth: int
    oldest_seconds: float = 0.0

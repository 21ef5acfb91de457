"""The heartbeat record of a service instance, the same for all four services."""

from __future__ import annotations

from typing import Literal

from services.contracts.messages import Message

ServiceKind = Literal["rollout", "verifier", "learner", "api"]
ServiceState = Literal["idle", "starting", "ready", "updating", "failed"]

HEARTBEAT_SECONDS = 1.0
HEARTBEAT_EXPIRES_SECONDS = 10.0
START_FAILURES = "start_failures"
"""Key of `ServiceRecord.details`: consecutive failed starts of a rollout server's engine for its run."""

WAITS_FOR_RESUME = "the run to be resumed"
"""What the learner of a paused run waits for."""

GPUS = "gpus"
"""Key of `ServiceRecord.details`: number of GPUs of a rollout server. One on a CPU has no such key, and serves all."""
MACHINE = "machine"
"""Key of `ServiceRecord.details`: the machine that a learner or rollout server is on. Its containers share it."""

HELPS = "helps"
"""Key of `ServiceRecord.details`: the learner for which this one has ranks on another machine. It serves no run."""


class ServiceRecord(Message, frozen=True, kw_only=True):
    """One heartbeat, stored under `streams.service(instance)` with an expiry, so dead instances disappear."""

    kind: ServiceKind
    instance: str
    """Unique name, for example `rollout-0`; stays the same when the instance restarts."""
    url: str
    """Base URL of the instance's HTTP server."""
    state: ServiceState
    pid: int
    started_at: float
    """Unix time by the instance's clock; tells one process of a name from the next."""
    at: float
    """Unix time by the instance's clock at which this was written."""
    run_id: str | None = None
    """The run that the instance works for; None for none. Verifiers serve all runs."""
    weight_version: int | None = None
    """Rollout servers: the version that their engine holds, verified. Learners: the version published last."""
    waiting_for: str = ""
    """What the instance is waiting for, in words; empty while it works."""
    waiting_since: float | None = None
    """Unix time by the instance's clock, always `at` less the time waited, however the clock was set meanwhile."""
    tokens_total: int = 0
    """Tokens handled since start: sampled (rollout), judged (verifier), trained (learner)."""
    tokens_unfinished: int = 0
    """Rollout servers: tokens sampled so far of responses that have not ended. It moves while the engine does."""
    details: dict[str, str] = {}
    """Further details: engine version, sandbox layers, last fault."""

    @property
    def leads_runs(self) -> bool:
        """Whether runs can be assigned to it as their learner."""
        return self.kind == "learner" and HELPS not in self.details

    @property
    def waiting_seconds(self) -> float:
        """How long it has waited, in seconds. Both times are the instance's own, so no other clock matters."""
        return 0.0 if self.waiting_since is None else max(0.0, self.at - self.waiting_since)

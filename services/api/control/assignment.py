"""Decides which instance works for what, from the facts alone.

An instance is bound to one piece of work at a time: a run, an evaluation, or a model that was asked for. Runs come
first: an evaluation gets a server that no run wants, and gives it up when a run wants one and none is idle. Its results
so far stay, and it waits for the next idle server. A model gets a server that is idle or that another model no longer
uses, and gives it up to runs and evaluations. It does not wait: whoever asked for it is told.

A run starts with one learner and one rollout server; more servers join, up to `rollout.num_servers`, once no queued run
can use them. A run keeps its learner even while the learner is away, because unacknowledged groups carry its name; a
missing rollout server is replaced if another one is idle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from services.contracts.heartbeat import GPUS, MACHINE, START_FAILURES, ServiceRecord
from services.contracts.states import ACTIVE_STATES

MAX_START_FAILURES = 5


@dataclass(slots=True)
class Assigned:
    """One run, evaluation or model with the services that it has or is to get."""

    run_id: str
    state: str
    num_servers: int
    learner: str | None
    servers: list[str] = field(default_factory=list)
    created_by: str = ""
    kind: Literal["run", "evaluation", "model"] = "run"
    is_replaceable: bool = False
    """Another model may have its server."""
    name: str = ""
    """How a model is called."""

    def __str__(self) -> str:
        return self.name or (f"run {self.run_id}" if self.kind == "run" else self.run_id)

    num_gpus: int = 1
    """GPUs that each server needs (`rollout.tensor_parallel_size`)."""
    shares_gpu: bool = False
    """Learner and server must be on one machine (`rollout.share_gpu`)."""

    def unfit(self, server: ServiceRecord, learner: ServiceRecord | None = None) -> str:
        """Why a server cannot work for this, with this learner if it is known; empty if it can."""
        gpus = int(server.details.get(GPUS, self.num_gpus))
        if gpus < self.num_gpus:
            return (
                f"rollout.tensor_parallel_size is {self.num_gpus}, but {server.instance} has {gpus} "
                f"GPU{'s' * (gpus != 1)}"
            )
        machines = {record.details.get(MACHINE) for record in (server, learner) if record is not None}
        if self.shares_gpu and len(machines) > 1:
            return f"rollout.share_gpu is true, but no learner is on the machine of {server.instance}"
        return ""


class _Servers:
    """Rollout servers that work may take: idle ones, then those of its lenders, the last lender's first."""

    def __init__(self, idle: Sequence[str], lenders: list[Assigned], alive: Mapping[str, ServiceRecord]) -> None:
        # Those with fewer GPUs first, so that runs that need more find the others idle.
        self.idle = sorted(idle, key=lambda name: int(alive[name].details.get(GPUS, 0)))
        self._lenders = lenders
        self._alive = alive

    def take(self, work: Assigned, learner: ServiceRecord | None = None) -> str | None:
        """A server that fits the work; None if no such server is free."""

        def fits(name: str) -> bool:
            record = self._alive.get(name)
            return record is not None and record.kind == "rollout" and not work.unfit(record, learner)

        if (found := next(filter(fits, self.idle), None)) is not None:
            self.idle.remove(found)
            return found
        for lender in reversed(self._lenders):
            if lender.servers and fits(lender.servers[-1]):
                lender.state = "queued"
                return lender.servers.pop()
        return None


def plan(works: Sequence[Assigned], services: Sequence[ServiceRecord], max_runs_per_key: int = 0) -> list[Assigned]:
    """The works as they should be: queued ones that can start have their learner and servers, and are `starting`
    (runs) or `running` (others).

    `works` are in the order of the queue, models with the one that was used last first. A run is passed over while its
    key has `max_runs_per_key` runs in progress (0: no limit). The input is not modified.
    """
    works = [replace(work, servers=list(work.servers)) for work in works]
    active = [work for work in works if work.state in ACTIVE_STATES]
    taken = {name for work in active for name in (work.learner, *work.servers) if name is not None}
    alive = {record.instance: record for record in services}
    idle = [record for record in services if record.instance not in taken and record.state != "failed"]
    learners = [record for record in idle if record.leads_runs and record.state in ("idle", "ready")]
    runs = [work for work in works if work.kind == "run"]
    evaluations = [work for work in works if work.kind == "evaluation"]
    models = [work for work in works if work.kind == "model"]
    servers = _Servers([record.instance for record in idle if record.kind == "rollout"], [*evaluations, *models], alive)
    _start_runs(runs, learners, servers, max_runs_per_key)
    for work in runs:
        if work.state in ("starting", "running", "paused"):
            _fill_servers(work, servers, alive)
    servers = _Servers(servers.idle, models, alive)  # an evaluation takes none from another
    _start_others(evaluations, servers)
    for work in evaluations:
        if work.state == "running":
            _fill_servers(work, servers, alive)
    waiting = [work for work in models if not work.is_replaceable]
    _start_others(waiting, _Servers(servers.idle, [work for work in models if work.is_replaceable], alive))
    return works


def is_full(key: str, in_progress: Counter[str], limit: int) -> bool:
    """Whether a key has as many runs in progress as it may. Without keys there is no one to share with."""
    return bool(key) and 0 < limit <= in_progress[key]


def _start_runs(
    runs: Sequence[Assigned], learners: list[ServiceRecord], servers: _Servers, max_runs_per_key: int
) -> None:
    in_progress = Counter(run.created_by for run in runs if run.state in ACTIVE_STATES)
    for run in runs:
        if run.state != "queued" or is_full(run.created_by, in_progress, max_runs_per_key):
            continue
        for learner in _fitting_learners(run, learners):
            if (server := servers.take(run, learner)) is not None:
                learners.remove(learner)
                run.state, run.learner, run.servers = "starting", learner.instance, [server]
                in_progress[run.created_by] += 1
                break


def _start_others(works: Sequence[Assigned], servers: _Servers) -> None:
    for work in works:
        if work.state == "queued" and (name := servers.take(work)) is not None:
            work.state, work.servers = "running", [name]


def _fitting_learners(run: Assigned, learners: Sequence[ServiceRecord]) -> list[ServiceRecord]:
    """Idle learners; the run's earlier one first if it is idle, since pending groups carry its name."""
    fit = [record for record in learners if record.run_id in (None, run.run_id)]
    return sorted(fit, key=lambda record: record.instance != run.learner)


def _fill_servers(work: Assigned, servers: _Servers, alive: Mapping[str, ServiceRecord]) -> None:
    """Give the work servers until `num_servers` of its servers are alive, dropping missing ones to make room."""
    num_alive = sum(name in alive for name in work.servers)
    learner = alive.get(work.learner or "")
    while num_alive < work.num_servers and (name := servers.take(work, learner)) is not None:
        gone = next((name for name in work.servers if name not in alive), None)
        if gone is not None and len(work.servers) >= work.num_servers:
            work.servers.remove(gone)
        work.servers.append(name)
        num_alive += 1


def hopeless(work: Assigned, records: Mapping[str, ServiceRecord]) -> str:
    """Why no server of this work will ever sample: each has failed to start its engine `MAX_START_FAILURES` times.

    Empty while any of them may. Such work would hold its services indefinitely.
    """
    servers = [records.get(name) for name in work.servers]
    for server in servers:
        if server is None or server.run_id != work.run_id:
            return ""
        if int(server.details.get(START_FAILURES, 0)) < MAX_START_FAILURES:
            return ""
    faults = [f"{server.instance}: {server.details.get('fault', '')}" for server in servers if server is not None]
    return f"No rollout server can start its engine. {faults[0]}" if faults else ""


def waits_for(evaluation: Assigned, works: Sequence[Assigned], records: Mapping[str, ServiceRecord]) -> str:
    """What an evaluation waits for, in words; empty while its questions are sampled. `works` are as planned."""
    if evaluation.state == "running":
        return _waits_for_server(evaluation, records)
    servers = _rollouts(records)
    if not servers:
        return "Waits for a rollout server; none is alive."
    if all(evaluation.unfit(server) for server in servers):
        return f"Waits for a rollout server that fits: {evaluation.unfit(servers[0])}."
    queued = [work for work in works if work.kind == "evaluation" and work.state == "queued"]
    ahead = queued.index(evaluation)
    behind = f", behind {ahead} other evaluation{'s' if ahead > 1 else ''}" if ahead else ""
    num_failed = sum(record.state == "failed" for record in servers)
    if num_failed == len(servers):
        return f"Waits for a rollout server{behind}; all {num_failed} have failed."
    return f"Waits for an idle rollout server{behind}; {_users(works)} uses {_all(len(servers))}."


def _waits_for_server(evaluation: Assigned, records: Mapping[str, ServiceRecord]) -> str:
    name = evaluation.servers[0]
    record = records.get(name)
    if record is None:
        return f"Waits for {name}, which is gone, or for another idle rollout server."
    if record.run_id is None:
        return f"Waits for {name} to take it."
    if record.run_id != evaluation.run_id:
        return f"Waits for {name} to leave its previous work."
    if fault := record.details.get("fault", ""):
        return f"{name}: {fault}"
    return "" if record.state == "ready" else f"{name} is starting the model."


def unserved(model: Assigned, works: Sequence[Assigned], records: Mapping[str, ServiceRecord]) -> str:
    """Why a model that was asked for has no server, in words; empty if it has one. `works` are as planned."""
    if model.state == "running":
        return ""
    servers = _rollouts(records)
    if not servers:
        return "No rollout server is alive."
    if all(model.unfit(server) for server in servers):
        return f"No rollout server fits: {model.unfit(servers[0])}."
    return f"No rollout server is idle; {_users(works)} uses {_all(len(servers))}."


def _rollouts(records: Mapping[str, ServiceRecord]) -> list[ServiceRecord]:
    return [record for record in records.values() if record.kind == "rollout"]


def _users(works: Sequence[Assigned]) -> str:
    """Who has servers, in words."""
    users = [work for work in works if work.servers and work.state in ACTIVE_STATES]
    shown = ", ".join(map(str, users[:3]))
    more = f" and {len(users) - 3} more" if len(users) > 3 else ""
    return f"{shown or 'nothing'}{more}"


def _all(number: int) -> str:
    return "the only one" if number == 1 else f"all {number}"

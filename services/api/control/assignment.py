"""Decides which instance works for what, from the facts alone.

An instance is bound to one piece of work at a time: a run or an evaluation. Runs come first: an evaluation gets a
server that no run wants, and gives it up when a run wants one and none is idle. Its results so far stay, and it waits
for the next idle server.

A run starts with one learner and one rollout server; more servers join, up to `rollout.num_servers`, once no queued run
can use them. A run keeps its learner even while the learner is away, because unacknowledged groups carry its name; a
missing rollout server is replaced if another one is idle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.contracts.heartbeat import START_FAILURES, ServiceRecord
from services.contracts.states import ACTIVE_STATES

MAX_START_FAILURES = 5


@dataclass(slots=True)
class Assigned:
    """One run or evaluation with the services that it has or is to get."""

    run_id: str
    state: str
    num_servers: int
    learner: str | None
    servers: list[str] = field(default_factory=list)
    created_by: str = ""
    is_evaluation: bool = False


class _Servers:
    """Rollout servers that runs may take: idle ones, then those of evaluations, the newest evaluation's first."""

    def __init__(self, idle: list[str], lenders: list[Assigned]) -> None:
        self.idle = idle
        self._lenders = lenders

    def __bool__(self) -> bool:
        return bool(self.idle or self._lenders)

    def take(self) -> str:
        if self.idle:
            return self.idle.pop(0)
        evaluation = self._lenders.pop()
        name = evaluation.servers.pop()
        evaluation.state = "queued"
        return name


def plan(works: Sequence[Assigned], services: Sequence[ServiceRecord], max_runs_per_key: int = 0) -> list[Assigned]:
    """The works as they should be: queued ones that can start have their learner and servers, and are `starting`
    (runs) or `running` (evaluations).

    `works` are in the order of the queue. A run is passed over while its key has `max_runs_per_key` runs in progress
    (0: no limit). The input is not modified.
    """
    works = [replace(work, servers=list(work.servers)) for work in works]
    active = [work for work in works if work.state in ACTIVE_STATES]
    taken = {name for work in active for name in (work.learner, *work.servers) if name is not None}
    alive = {record.instance: record for record in services}
    idle = [record for record in services if record.instance not in taken and record.state != "failed"]
    learners = [record for record in idle if record.leads_runs and record.state in ("idle", "ready")]
    evaluations = [work for work in works if work.is_evaluation]
    rollouts = {record.instance for record in services if record.kind == "rollout"}
    lenders = [work for work in evaluations if work.state == "running" and set(work.servers) & rollouts]
    servers = _Servers([record.instance for record in idle if record.kind == "rollout"], lenders)
    _start_runs([work for work in works if not work.is_evaluation], learners, servers, max_runs_per_key)
    for work in works:
        if not work.is_evaluation and work.state in ("starting", "running", "paused"):
            _fill_servers(work, servers, alive)
    for work in evaluations:
        if work.state == "queued" and servers.idle:
            work.state, work.servers = "running", [servers.idle.pop(0)]
    for work in evaluations:
        if work.state == "running":
            _fill_servers(work, _Servers(servers.idle, []), alive)
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
        learner = _choose_learner(run, learners)
        if learner is None or not servers:
            continue
        learners.remove(learner)
        run.state, run.learner, run.servers = "starting", learner.instance, [servers.take()]
        in_progress[run.created_by] += 1


def _choose_learner(run: Assigned, learners: Sequence[ServiceRecord]) -> ServiceRecord | None:
    """An idle learner; the run's earlier one if it is idle, since pending groups carry its name."""
    fit = [record for record in learners if record.run_id in (None, run.run_id)]
    return next((record for record in fit if record.instance == run.learner), fit[0] if fit else None)


def _fill_servers(work: Assigned, servers: _Servers, alive: Mapping[str, ServiceRecord]) -> None:
    """Give the work servers until `num_servers` of its servers are alive, dropping missing ones to make room."""
    num_alive = sum(name in alive for name in work.servers)
    while num_alive < work.num_servers and servers:
        gone = next((name for name in work.servers if name not in alive), None)
        if gone is not None and len(work.servers) >= work.num_servers:
            work.servers.remove(gone)
        work.servers.append(servers.take())
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
    servers = [record for record in records.values() if record.kind == "rollout"]
    if not servers:
        return "Waits for a rollout server; none is alive."
    users = [work for work in works if work.servers and work.state in ACTIVE_STATES]
    shown = ", ".join(f"{'' if work.is_evaluation else 'run '}{work.run_id}" for work in users[:3])
    more = f" and {len(users) - 3} more" if len(users) > 3 else ""
    queued = [work for work in works if work.is_evaluation and work.state == "queued"]
    ahead = queued.index(evaluation)
    behind = f", behind {ahead} other evaluation{'s' if ahead > 1 else ''}" if ahead else ""
    num_failed = sum(record.state == "failed" for record in servers)
    if num_failed == len(servers):
        return f"Waits for a rollout server{behind}; all {num_failed} have failed."
    return f"Waits for an idle rollout server{behind}; {shown or 'nothing'}{more} uses {_all(len(servers))}."


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


def _all(number: int) -> str:
    return "the only one" if number == 1 else f"all {number}"

"""Which idle learners and rollout servers each run gets. Pure functions of runs and services.

A run starts with one learner and one rollout server; more servers join, up to `rollout.num_servers`, once no queued run
can use them. A run keeps its learner even while the learner is away, because unacknowledged groups carry its name; a
missing rollout server is replaced if another one is idle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from services.contracts.heartbeat import ServiceRecord
from services.contracts.states import ACTIVE_STATES


@dataclass(slots=True)
class Assigned:
    """One run with the services that it has or is to get."""

    run_id: str
    state: str
    num_servers: int
    learner: str | None
    servers: list[str] = field(default_factory=list)
    created_by: str = ""


def plan(runs: Sequence[Assigned], services: Sequence[ServiceRecord], max_runs_per_key: int = 0) -> list[Assigned]:
    """The runs as they should be: queued runs that can start are `starting`, with their learner and servers.

    `runs` are in the order of the queue. A run is passed over while its key has `max_runs_per_key` runs in progress (0:
    no limit). The input is not modified.
    """
    runs = [replace(run, servers=list(run.servers)) for run in runs]
    active = [run for run in runs if run.state in ACTIVE_STATES]
    taken = {name for run in active for name in (run.learner, *run.servers) if name is not None}
    alive = {record.instance: record for record in services}
    idle = [record for record in services if record.instance not in taken and record.state != "failed"]
    learners = [record for record in idle if record.leads_runs and record.state in ("idle", "ready")]
    servers = [record.instance for record in idle if record.kind == "rollout"]
    in_progress = Counter(run.created_by for run in active)
    for run in runs:
        if run.state != "queued" or is_full(run.created_by, in_progress, max_runs_per_key):
            continue
        learner = _choose_learner(run, learners)
        if learner is None or not servers:
            continue
        learners.remove(learner)
        run.state, run.learner, run.servers = "starting", learner.instance, [servers.pop(0)]
        in_progress[run.created_by] += 1
    for run in runs:
        if run.state in ("starting", "running", "paused"):
            _fill_servers(run, servers, alive)
    return runs


def is_full(key: str, in_progress: Counter[str], limit: int) -> bool:
    """Whether a key has as many runs in progress as it may. Without keys there is no one to share with."""
    return bool(key) and 0 < limit <= in_progress[key]


def _choose_learner(run: Assigned, learners: Sequence[ServiceRecord]) -> ServiceRecord | None:
    """An idle learner; the run's earlier one if it is idle, since pending groups carry its name."""
    fit = [record for record in learners if record.run_id in (None, run.run_id)]
    return next((record for record in fit if record.instance == run.learner), fit[0] if fit else None)


def _fill_servers(run: Assigned, idle: list[str], alive: dict[str, ServiceRecord]) -> None:
    """Give the run idle servers until `num_servers` of its servers are alive, dropping missing ones to make room."""
    num_alive = sum(name in alive for name in run.servers)
    while num_alive < run.num_servers and idle:
        gone = next((name for name in run.servers if name not in alive), None)
        if gone is not None and len(run.servers) >= run.num_servers:
            run.servers.remove(gone)
        run.servers.append(idle.pop(0))
        num_alive += 1

"""Why each queued run waits, and when it is likely to start. Pure functions of runs and services."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from services.api.control.assignment import Assigned, is_full
from services.contracts.heartbeat import GPUS, ServiceRecord
from services.contracts.records import QueuePlace
from services.contracts.states import ACTIVE_STATES

UNKNOWN = math.inf
MAX_NAMED = 3
"""Runs that a reason names; of more it says only how many."""


def outlook(
    runs: Sequence[Assigned],
    services: Sequence[ServiceRecord],
    seconds_left: Mapping[str, float],
    max_runs_per_key: int = 0,
) -> dict[str, QueuePlace]:
    """The place of every queued run.

    Args:
        runs: unfinished runs in the order of the queue.
        services: the live instances.
        seconds_left: how long a run still takes, or takes in all; runs of which nothing is known are missing.
        max_runs_per_key: as for `assignment.plan`.
    """
    active = [run for run in runs if run.state in ACTIVE_STATES]
    in_progress = Counter(run.created_by for run in active)
    times = _Times(active, _num_slots(active, services), seconds_left, max_runs_per_key)
    why = _shortage(active, services)
    places: dict[str, QueuePlace] = {}
    for run in runs:
        if run.state != "queued":
            continue
        reason = (
            why
            or _unfit(run, services)
            or ("Runs before it in the queue take the idle services." if places else "It is about to start.")
        )
        if is_full(run.created_by, in_progress, max_runs_per_key):
            count = in_progress[run.created_by]
            runs_of_key = f"{count} run" if count == 1 else f"{count} runs"
            reason = f"Its key has {runs_of_key} in progress, as many as TURNOUT_MAX_RUNS_PER_KEY allows."
        start = times.start_of(run)
        known = start if math.isfinite(start) else None
        places[run.run_id] = QueuePlace(position=len(places) + 1, reason=reason, starts_in_seconds=known)
    return places


class _Times:
    """When each queued run starts, if all take as long as expected. Ask in the order of the queue."""

    def __init__(
        self, active: Sequence[Assigned], num_slots: int, seconds_left: Mapping[str, float], max_runs_per_key: int
    ) -> None:
        self._left = seconds_left
        self._max = max_runs_per_key
        ends = [(seconds_left.get(run.run_id, UNKNOWN), run.created_by) for run in active]
        self._slots = [0.0] * (num_slots - len(active)) + [end for end, _ in ends]
        heapq.heapify(self._slots)
        self._of_key: dict[str, list[float]] = defaultdict(list)
        """The latest ends of each key's runs, as many as it may have in progress."""
        for end, key in ends:
            self._note(key, end)

    def start_of(self, run: Assigned) -> float:
        """Seconds from now, or `UNKNOWN`."""
        start = heapq.heappop(self._slots) if self._slots else UNKNOWN
        latest = self._of_key[run.created_by]
        if run.created_by and 0 < self._max <= len(latest):
            start = max(start, latest[0])
        end = start + self._left.get(run.run_id, UNKNOWN)
        heapq.heappush(self._slots, end)
        self._note(run.created_by, end)
        return start

    def _note(self, key: str, end: float) -> None:
        latest = self._of_key[key]
        heapq.heappush(latest, end)
        if len(latest) > self._max:
            heapq.heappop(latest)


def _num_slots(active: Sequence[Assigned], services: Sequence[ServiceRecord]) -> int:
    """Runs that can be in progress at once: each needs a learner, and a rollout server that no run holds."""
    held = {name for run in active for name in run.servers}
    idle = sum(record.kind == "rollout" and record.instance not in held for record in services)
    learners = sum(record.leads_runs and record.state != "failed" for record in services)
    return min(learners, len(active) + idle)


def _shortage(active: Sequence[Assigned], services: Sequence[ServiceRecord]) -> str:
    """What keeps the next run from starting; empty if nothing does."""
    learners = [record for record in services if record.leads_runs]
    servers = [record for record in services if record.kind == "rollout"]
    for name, found in (("learner", learners), ("rollout server", servers)):
        working = [record for record in found if record.state != "failed"]
        if not found:
            return f"No {name} is running."
        if not working:
            return f"No {name} works: {found[0].instance} has failed."
    led = {run.learner: run.run_id for run in active if run.learner}
    idle = [record for record in learners if record.instance not in led and record.state != "failed"]
    if not idle:
        return _all_busy("learner", len(learners), sorted(led.values()))
    if all(record.state not in ("idle", "ready") for record in idle):
        return f"{idle[0].instance} is {idle[0].state}."
    held = {name: run.run_id for run in active for name in run.servers}
    if all(record.instance in held for record in servers):
        return _all_busy("rollout server", len(servers), sorted(set(held.values())))
    return ""


def _unfit(run: Assigned, services: Sequence[ServiceRecord]) -> str:
    """Why no server that is running can ever work for this run; empty if one can."""
    servers = [record for record in services if record.kind == "rollout"]
    learners = [record for record in services if record.leads_runs]
    if any(not run.unfit(server, learner) for server in servers for learner in learners):
        return ""
    largest = max(servers, key=lambda server: int(server.details.get(GPUS, 0)))
    return f"No rollout server fits: {run.unfit(largest, learners[0])}."


def _all_busy(name: str, count: int, users: Sequence[str]) -> str:
    who = ", ".join(users) if len(users) <= MAX_NAMED else f"{len(users)} runs"
    return f"The only {name} works for {who}." if count == 1 else f"All {count} {name}s work for {who}."

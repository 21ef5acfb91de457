"""Explains stalls from service records: who waits, for what, since when, and which instance does not deliver it.

Waits and groups travel in opposite directions: the learner waits for scored groups, which verifiers make from
completions, which rollout servers make from prompts. So whoever waits, the culprit is an instance of the stage where
groups pile up: one that is gone, has failed, is starting, is itself waiting, or has made no progress for long.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from services.contracts.heartbeat import ServiceKind, ServiceRecord
from services.contracts.records import QueueState
from services.contracts.turns import WAITS_FOR_TURN

Cause = Literal["gone", "failed", "starting", "updating", "waiting", "silent", "unknown"]
_CONSUMER: dict[str, ServiceKind] = {"prompts": "rollout", "completions": "verifier"}
"""Stages whose queue empties as they work. (`scored` keeps groups until a checkpoint, so its depth means nothing.)"""
_NAMES: dict[ServiceKind, str] = {"rollout": "rollout server ", "verifier": "", "learner": "", "api": ""}
_OUTPUT: dict[ServiceKind, str] = {
    "rollout": "has sampled no group",
    "verifier": "has judged no group",
    "learner": "has trained no step",
    "api": "has done nothing",
}


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait of one instance that works for a run."""

    run_id: str
    kind: ServiceKind
    instance: str
    waiting_for: str
    seconds: float
    is_own: bool = False
    """It waits for itself: for a model to load, or an engine to start."""

    @property
    def label(self) -> str:
        """`waiting_for` without its numbers, so that the set of metric labels stays small."""
        return re.sub(r"\d+(\.\d+)?", "n", self.waiting_for)[:80]


@dataclass(frozen=True, slots=True)
class Culprit:
    """The instance that holds up a run."""

    instance: str
    """Its name, or the kind of service if no instance of it is running; empty if the culprit is unknown."""
    cause: Cause
    text: str


@dataclass(frozen=True, slots=True)
class Stall:
    """A run that does not move. `text` says who waits for what, and which instance is to blame."""

    run_id: str
    key: str
    """Stays the same while the cause does."""
    text: str
    seconds: float
    culprit: Culprit


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is known about the instances at one moment."""

    services: Sequence[ServiceRecord]
    assigned: Mapping[str, Sequence[str]]
    """Run id to its learner and rollout servers; only runs that should move."""
    silent_seconds: Mapping[str, float]
    """Instance to seconds since it last made progress."""


def find_waits(services: Sequence[ServiceRecord], run_ids: Sequence[str]) -> list[Wait]:
    """Every current wait of instances that work for one of `run_ids`. The wait of an instance without a run does not
    count, nor that of a rollout server while the learner trains on their GPU."""
    return [
        Wait(
            record.run_id,
            record.kind,
            record.instance,
            record.waiting_for,
            record.waiting_seconds,
            is_own=record.state == "starting",
        )
        for record in services
        if record.run_id in run_ids and record.run_id is not None and record.waiting_for not in ("", WAITS_FOR_TURN)
    ]


def find_stalls(waits: Sequence[Wait], queues: Sequence[QueueState], fleet: Fleet, limit_seconds: float) -> list[Stall]:
    """The stalls of all runs.

    Args:
        waits: from `find_waits`.
        queues: depth and age of each run's streams.
        fleet: the instances.
        limit_seconds: how long a wait or a message may last before it counts. An instance is a suspect once it has been
            silent for half as long: it had work before the others had to wait for it.

    There are two kinds: a service that the run needs is missing (reported immediately, whatever the limit), or
    something has waited too long. Long responses are not a stall: while an engine is producing the tokens that the
    others wait for, all is well.
    """
    stalls = []
    for run_id in fleet.assigned:
        stalls += _missing(run_id, fleet)
    for queue in queues:
        consumer = _CONSUMER.get(queue.stream)
        if queue.run_id not in fleet.assigned or consumer is None or not queue.depth:
            continue
        if queue.oldest_seconds > limit_seconds:
            culprit = find_culprit(queue.run_id, [queue], fleet, limit_seconds)
            if culprit.cause == "unknown" and _samples(queue.run_id, [queue], fleet, limit_seconds):
                continue
            taker = "rollout server" if consumer == "rollout" else consumer
            text = (
                f"{queue.depth} messages on {queue.stream} are waiting for a {taker}, the oldest for "
                f"{queue.oldest_seconds:.0f} s: {culprit.text}."
            )
            stalls.append(Stall(queue.run_id, f"queue:{queue.stream}", text, queue.oldest_seconds, culprit))
    for wait in waits:
        if wait.run_id in fleet.assigned and wait.seconds > limit_seconds:
            own = [queue for queue in queues if queue.run_id == wait.run_id]
            text = f"{wait.instance} has waited {wait.seconds:.0f} s for {wait.waiting_for}"
            if wait.is_own:
                culprit = Culprit(wait.instance, "starting", "")
            else:
                culprit = find_culprit(wait.run_id, own, fleet, limit_seconds, but=wait.instance)
            if culprit.cause == "unknown" and _samples(wait.run_id, own, fleet, limit_seconds):
                continue
            text += f": {culprit.text}." if culprit.text else "."
            stalls.append(Stall(wait.run_id, f"wait:{wait.instance}:{wait.label}", text, wait.seconds, culprit))
    return stalls


def no_queue_server(run_ids: Sequence[str], fault: str, seconds: float) -> list[Stall]:
    """The stall of every run while the queue server is unavailable. `fault` is the reason, if it is known."""
    text = fault or "The queue server does not answer; services will resume once it does."
    culprit = Culprit("queue server", "failed" if fault else "gone", text)
    key = f"queue-server:{culprit.cause}"
    return [Stall(run_id, key, text, seconds, culprit) for run_id in run_ids]


def _missing(run_id: str, fleet: Fleet) -> list[Stall]:
    """Stalls for services that the run needs and that are missing."""
    alive = {record.instance: record for record in fleet.services}
    serves = any(name in alive and alive[name].kind == "rollout" for name in fleet.assigned[run_id])
    stalls = []
    for name in fleet.assigned[run_id]:
        if name not in alive:
            is_learner = name == fleet.assigned[run_id][0]
            is_needed = is_learner or not serves
            then = "the run is waiting for it" if is_needed else "the run continues with the other servers"
            text = f"{name} has stopped sending heartbeats"
            stalls.append(Stall(run_id, f"gone:{name}", f"{text}; {then}.", 0.0, Culprit(name, "gone", text)))
    if not any(record.kind == "verifier" for record in fleet.services):
        text = "no verifier is running"
        stall_text = "No verifier is running; completions cannot be judged."
        stalls.append(Stall(run_id, "no-verifier", stall_text, 0.0, Culprit("verifier", "gone", text)))
    return stalls


def find_culprit(
    run_id: str, queues: Sequence[QueueState], fleet: Fleet, limit_seconds: float, but: str = ""
) -> Culprit:
    """The instance that keeps the groups on `queues` from being processed. Later stages are checked first, because they
    are nearest to the learner. `but` is the instance that waits, which cannot be the culprit."""
    lying = {queue.stream: queue.depth for queue in queues if queue.depth}
    for stream in ("completions", "prompts"):
        if stream not in lying:
            continue
        where = f"{lying[stream]} groups on {stream}"
        suspects = [_suspect(name, fleet, limit_seconds) for name in _consumers(run_id, stream, fleet) if name != but]
        found = [culprit for culprit in suspects if culprit is not None]
        if not suspects and stream == "completions":
            return Culprit("verifier", "gone", f"no verifier is running ({where})")
        if found and len(found) == len(suspects):  # if any of them works, the stage delivers
            return Culprit(found[0].instance, found[0].cause, "; ".join(item.text for item in found) + f" ({where})")
    learner = next(iter(fleet.assigned.get(run_id, ())), "")
    if not lying.keys() & _CONSUMER.keys() and learner != but:
        culprit = _suspect(learner, fleet, limit_seconds)
        if culprit is not None:
            return Culprit(culprit.instance, culprit.cause, f"{culprit.text} (no groups are in flight)")
    if not lying:
        return Culprit("", "unknown", "all its queues are empty")
    shown = ", ".join(f"{stream} {depth}" for stream, depth in lying.items())
    return Culprit(
        "", "unknown", f"every service reports that it is working (messages waiting or in progress: {shown})"
    )


def _samples(run_id: str, queues: Sequence[QueueState], fleet: Fleet, limit_seconds: float) -> bool:
    """Whether a server of the run is producing tokens, with nothing left to judge."""
    if any(queue.depth for queue in queues if queue.stream == "completions"):
        return False
    servers = [record for record in fleet.services if record.instance in _consumers(run_id, "prompts", fleet)]
    return any(
        record.tokens_unfinished and fleet.silent_seconds.get(record.instance, 0.0) <= limit_seconds / 2
        for record in servers
    )


def _consumers(run_id: str, stream: str, fleet: Fleet) -> list[str]:
    """Names of the instances that take groups from `stream`, whether they are running or not."""
    if _CONSUMER[stream] == "rollout":
        return list(fleet.assigned.get(run_id, ()))[1:]
    return [record.instance for record in fleet.services if record.kind == "verifier"]


def _suspect(name: str, fleet: Fleet, limit_seconds: float) -> Culprit | None:
    """What is wrong with one instance; None if it seems to be working."""
    record = next((record for record in fleet.services if record.instance == name), None)
    if record is None:
        return Culprit(name, "gone", f"{name} has stopped sending heartbeats")
    shown = f"{_NAMES[record.kind]}{name}"
    silent = fleet.silent_seconds.get(name, 0.0)
    is_silent = silent > limit_seconds / 2
    since = f" and {_OUTPUT[record.kind]} for {silent:.0f} s" if is_silent else ""
    if record.state == "failed":
        fault = record.details.get("fault", "").rstrip(".")
        return Culprit(name, "failed", f"{shown} has failed{': ' + fault if fault else ''}{since}")
    if record.state in ("starting", "updating"):
        what = {"starting": "is starting", "updating": "is loading weights"}[record.state]
        detail = f" ({record.waiting_for})" if record.waiting_for else ""
        cause: Cause = "starting" if record.state == "starting" else "updating"
        return Culprit(name, cause, f"{shown} {what}{detail}{since}")
    if record.waiting_for:
        return Culprit(name, "waiting", f"{shown} is waiting for {record.waiting_for}{since}")
    if is_silent:
        return Culprit(name, "silent", f"{shown} {_OUTPUT[record.kind]} for {silent:.0f} s")
    return None

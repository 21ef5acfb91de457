"""Why queued runs wait, and when they are likely to start."""

from __future__ import annotations

from typing import Any

from services.api.control.assignment import Assigned
from services.api.control.outlook import outlook
from services.contracts.heartbeat import ServiceKind, ServiceRecord


def record(kind: ServiceKind, name: str, state: Any = "ready") -> ServiceRecord:
    return ServiceRecord(kind=kind, instance=name, url="", state=state, pid=1, started_at=1.0, at=2.0)


LEARNERS = [record("learner", "learner-0"), record("learner", "learner-1")]
SERVERS = [record("rollout", "rollout-0"), record("rollout", "rollout-1")]
FIRST = Assigned("first", "running", 1, "learner-0", ["rollout-0"], "k")
SECOND = Assigned("second", "running", 1, "learner-1", ["rollout-1"], "l")


def queued(name: str, key: str = "") -> Assigned:
    return Assigned(name, "queued", 1, None, created_by=key)


def test_each_run_starts_when_the_next_learner_is_free() -> None:
    left = {"first": 30.0, "second": 100.0, "a": 50.0, "b": 10.0, "c": 10.0}
    places = outlook([FIRST, SECOND, queued("a"), queued("b"), queued("c")], LEARNERS + SERVERS, left)
    assert [place.starts_in_seconds for place in places.values()] == [30, 80, 90]
    assert [place.position for place in places.values()] == [1, 2, 3]
    assert places["a"].reason == "All 2 learners work for first, second."


def test_without_a_known_pace_no_time_is_promised() -> None:
    places = outlook([FIRST, queued("a"), queued("b")], LEARNERS[:1] + SERVERS[:1], {"first": 30.0})
    assert places["a"].starts_in_seconds == 30
    assert places["b"].starts_in_seconds is None
    assert outlook([FIRST, queued("a")], LEARNERS[:1] + SERVERS[:1], {})["a"].starts_in_seconds is None


def test_the_reason_names_what_is_missing() -> None:
    def reason(services: list[ServiceRecord], *active: Assigned) -> str:
        return outlook([*active, queued("a")], services, {})["a"].reason

    assert reason(SERVERS) == "No learner is running."
    assert reason(LEARNERS) == "No rollout server is running."
    assert reason([record("learner", "learner-0", "failed"), *SERVERS]) == "No learner works: learner-0 has failed."
    assert reason([record("learner", "learner-0", "starting"), *SERVERS]) == "learner-0 is starting."
    assert reason(LEARNERS + SERVERS[:1], FIRST) == "The only rollout server works for first."
    assert reason(LEARNERS + SERVERS, FIRST) == "It is about to start."
    many = [Assigned(f"r{index}", "running", 1, f"learner-{index}", []) for index in range(5)]
    assert reason([record("learner", f"learner-{index}") for index in range(5)] + SERVERS, *many) == (
        "All 5 learners work for 5 runs."
    )


def test_a_key_at_its_limit_waits_for_its_own_runs() -> None:
    left = {"first": 30.0, "second": 100.0, "a": 5.0, "b": 5.0}
    runs = [FIRST, SECOND, queued("a", "l"), queued("b", "k")]
    three = [*LEARNERS, record("learner", "learner-2"), *SERVERS, record("rollout", "rollout-2")]
    places = outlook(runs, three, left, max_runs_per_key=1)
    assert places["a"].reason == "Its key has 1 run in progress, as many as TURNOUT_MAX_RUNS_PER_KEY allows."
    assert places["a"].starts_in_seconds == 100
    assert places["b"].starts_in_seconds == 30


def test_a_long_queue_is_ordered_quickly_and_without_gaps() -> None:
    runs = [FIRST, *(queued(f"q{index}") for index in range(2000))]
    left = {run.run_id: 1.0 for run in runs}
    places = outlook(runs, LEARNERS[:1] + SERVERS[:1], left)
    assert [place.starts_in_seconds for place in places.values()] == [float(index + 1) for index in range(2000)]

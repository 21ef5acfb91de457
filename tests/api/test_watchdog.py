"""A stall names itself."""

from __future__ import annotations

from typing import Any

import httpx
from redis.asyncio import Redis

from services.api.fleet.queues import QueueState
from services.api.parts import Parts
from services.api.watchdog import find_stalls, find_waits
from services.contracts.events import RunStateChanged
from services.contracts.services import ServiceRecord
from tests.api.fakes import FakeInstance


def record(kind: Any, name: str, **fields: Any) -> ServiceRecord:
    return ServiceRecord(kind=kind, instance=name, url="", state="ready", pid=1, started_at=0.0, at=0.0, **fields)


def queue(stream: str, depth: int, oldest_seconds: float) -> QueueState:
    return QueueState(run_id="a", stream=stream, depth=depth, oldest_seconds=oldest_seconds)


LEARNER = record("learner", "learner-0", run_id="a", waiting_for="4 groups on scored", waiting_since=100.0)
VERIFIER = record("verifier", "verifier-0")
ROLLOUT = record("rollout", "rollout-0", run_id="a")
ASSIGNED = {"a": ["learner-0", "rollout-0"]}


def test_waits_of_instances_that_work_for_a_run() -> None:
    idle = record("rollout", "rollout-9", waiting_for="an assignment", waiting_since=0.0)
    (wait,) = find_waits([LEARNER, VERIFIER, ROLLOUT, idle], ["a"], 130.0)
    assert (wait.instance, wait.seconds, wait.label) == ("learner-0", 30.0, "n groups on scored")
    assert find_waits([LEARNER], ["b"], 130.0) == []


def test_nothing_is_wrong_while_things_move() -> None:
    services = [LEARNER, VERIFIER, ROLLOUT]
    waits = find_waits(services, ["a"], 110.0)
    assert find_stalls(waits, [queue("prompts", 4, 5.0)], services, ASSIGNED, 60.0) == []


def test_a_long_wait_says_where_the_work_lies() -> None:
    services = [LEARNER, VERIFIER, ROLLOUT]
    waits = find_waits(services, ["a"], 200.0)
    (stall,) = find_stalls(waits, [queue("prompts", 4, 5.0), queue("scored", 0, 0.0)], services, ASSIGNED, 60.0)
    assert stall.text == ("learner-0 has waited 100 s for 4 groups on scored (messages in hand or waiting: prompts 4).")
    (stall,) = find_stalls(waits, [], services, ASSIGNED, 60.0)
    assert "all its queues are empty" in stall.text


def test_missing_services_and_old_messages_are_named() -> None:
    stalls = find_stalls([], [queue("completions", 2, 90.0), queue("scored", 9, 900.0)], [LEARNER], ASSIGNED, 60.0)
    assert [stall.key for stall in stalls] == ["gone:rollout-0", "no-verifier", "queue:completions"]
    assert "2 messages on completions wait for a verifier; the oldest for 90 s" in stalls[2].text


def test_runs_that_need_not_move_have_no_stalls() -> None:
    waits = find_waits([LEARNER], ["a"], 900.0)
    assert find_stalls(waits, [queue("prompts", 4, 900.0)], [LEARNER], {}, 60.0) == []


async def test_a_stall_is_noted_once_and_its_end_too(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_body: dict[str, Any], learner: FakeInstance
) -> None:
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    server = FakeInstance(redis, "rollout", "rollout-0")
    verifier = FakeInstance(redis, "verifier", "verifier-0")
    for instance in (server, verifier):
        await instance.publish()
    await parts.scheduler.step()
    await parts.journal.store([RunStateChanged(run_id=run_id, at=1.0, state="running")])

    async def notes() -> list[str]:
        text = (await client.get(f"/v1/runs/{run_id}/events", params={"follow": "false"})).text
        return [line for line in text.splitlines() if '"source":"api-0"' in line]

    for _ in range(3):
        await parts.watchdog.step()
    assert await notes() == []
    await server.vanish()
    for _ in range(3):
        await parts.watchdog.step()
    (note,) = await notes()
    assert "Stalled: rollout-0 gives no sign of life" in note
    await server.publish()
    for _ in range(3):
        await parts.watchdog.step()
    assert "Moving again" in (await notes())[1]

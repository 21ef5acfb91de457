"""Assignment of services to runs: the plan alone, then the loop with Valkey and fake services."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from services.api.container import Parts, make_parts
from services.api.control.assignment import Assigned, plan
from services.api.control.outlook import outlook
from services.api.storage.database import open_database
from services.contracts import streams
from services.contracts.events import RunStateChanged
from services.contracts.heartbeat import HELPS, START_FAILURES, ServiceKind, ServiceRecord
from services.contracts.states import ACTIVE_STATES, RUN_STATES, TERMINAL_STATES
from services.runtime.settings import Settings
from tests.services.api.fakes import FakeInstance, client_of, emit, eventually, looping


def record(kind: ServiceKind, name: str, run_id: str | None = None, state: Any = "idle") -> ServiceRecord:
    return ServiceRecord(kind=kind, instance=name, url="", state=state, pid=1, started_at=1.0, at=2.0, run_id=run_id)


def fleet(num_learners: int, num_servers: int) -> list[ServiceRecord]:
    learners = [record("learner", f"learner-{index}") for index in range(num_learners)]
    return learners + [record("rollout", f"rollout-{index}") for index in range(num_servers)]


def of_machine(record: ServiceRecord, **details: str) -> ServiceRecord:
    return msgspec.structs.replace(record, details=details)


def test_a_run_gets_servers_with_as_many_gpus_as_it_needs() -> None:
    """Small runs take small servers, whatever the names; a run that no server fits waits and says why."""
    small = of_machine(record("rollout", "rollout-1"), gpus="1")
    large = of_machine(record("rollout", "rollout-0"), gpus="4")
    learners = [record("learner", "learner-0"), record("learner", "learner-1")]
    runs = [Assigned("little", "queued", 1, None), Assigned("wide", "queued", 2, None, num_gpus=2)]
    little, wide = plan(runs, [*learners, small, large])
    assert (little.servers, wide.servers) == (["rollout-1"], ["rollout-0"])
    again = plan([wide], [*learners, small, large])[0]
    assert again.servers == ["rollout-0"], "the small one does not join"
    huge = Assigned("huge", "queued", 1, None, num_gpus=8)
    assert plan([huge], [*learners, small, large])[0].state == "queued"
    reason = outlook([huge], [*learners, small, large], {})["huge"].reason
    assert reason == "No rollout server fits: rollout.tensor_parallel_size is 8, but rollout-0 has 4 GPUs."
    borrowed = Assigned("evaluation", "running", 1, None, ["rollout-1"], kind="evaluation")
    assert plan([borrowed, wide], [*learners, small])[0].state == "running", "of no use to the run"
    on_cpu = record("rollout", "rollout-2")
    assert plan([huge], [*learners, on_cpu])[0].servers == ["rollout-2"]


def test_learner_and_server_of_one_gpu_are_on_one_machine() -> None:
    learners = [of_machine(record("learner", f"learner-{name}"), machine=name) for name in "ab"]
    server = of_machine(record("rollout", "rollout-0"), machine="b")
    run = Assigned("run", "queued", 1, None, shares_gpu=True)
    assert plan([run], [*learners, server])[0].learner == "learner-b"
    assert plan([run], [learners[0], server])[0].state == "queued"
    reason = outlook([run], [learners[0], server], {})["run"].reason
    assert reason == "No rollout server fits: rollout.share_gpu is true, but no learner is on the machine of rollout-0."


def test_a_queued_run_needs_a_learner_and_a_rollout_server() -> None:
    run = Assigned("a", "queued", 1, None)
    for num_learners, num_servers in ((0, 0), (1, 0), (0, 3)):
        assert plan([run], fleet(num_learners, num_servers)) == [run]
    assert plan([run], fleet(1, 1)) == [Assigned("a", "starting", 1, "learner-0", ["rollout-0"])]
    assert run.state == "queued"


def test_two_runs_start_before_one_gets_more_servers() -> None:
    runs = [Assigned("a", "queued", 3, None), Assigned("b", "queued", 1, None), Assigned("c", "queued", 1, None)]
    first, second, third = plan(runs, fleet(2, 3))
    assert (first.learner, first.servers) == ("learner-0", ["rollout-0", "rollout-2"])
    assert (second.learner, second.servers) == ("learner-1", ["rollout-1"])
    assert third == runs[2]


def test_late_servers_join_and_missing_ones_are_replaced() -> None:
    run = Assigned("a", "running", 2, "learner-0", ["rollout-0", "rollout-1"])
    services = fleet(1, 0)
    assert plan([run], services) == [run]  # missing, with no replacement: they keep their place
    services += [record("rollout", "rollout-0"), record("rollout", "rollout-7")]
    assert plan([run], services)[0].servers == ["rollout-0", "rollout-7"]


def test_a_busy_or_failed_learner_is_not_taken() -> None:
    run = Assigned("a", "queued", 1, None)
    server = record("rollout", "rollout-0")
    assert plan([run], [record("learner", "l", run_id="other"), server]) == [run]
    assert plan([run], [record("learner", "l", state="starting"), server]) == [run]
    assert plan([run], [record("learner", "l", run_id="a"), server])[0].learner == "l"
    helper = msgspec.structs.replace(record("learner", "l"), details={HELPS: "http://10.0.0.1:8401"})
    assert plan([run], [helper, server]) == [run], "it has ranks of another learner's runs"


def test_a_resumed_run_goes_to_its_earlier_learner() -> None:
    run = Assigned("a", "queued", 1, "learner-1", ["rollout-9"])
    assert plan([run], fleet(2, 1))[0] == Assigned("a", "starting", 1, "learner-1", ["rollout-0"])


def test_a_key_gets_no_more_runs_than_its_share_and_blocks_nobody_else() -> None:
    runs = [Assigned(name, "queued", 1, None, created_by=key) for name, key in (("a", "k"), ("b", "k"), ("c", "l"))]
    assert [run.state for run in plan(runs, fleet(3, 3), 1)] == ["starting", "queued", "starting"]
    assert [run.state for run in plan(runs, fleet(3, 3), 2)] == ["starting"] * 3
    without_keys = [Assigned(name, "queued", 1, None) for name in "ab"]
    assert [run.state for run in plan(without_keys, fleet(2, 2), 1)] == ["starting"] * 2


def test_an_evaluation_gets_only_what_no_run_wants() -> None:
    run = Assigned("run", "running", 2, "learner-0", ["rollout-0"])
    first = Assigned("first", "running", 1, None, ["rollout-1"], kind="evaluation")
    second = Assigned("second", "running", 1, None, ["rollout-2"], kind="evaluation")
    after = plan([run, first, second], fleet(1, 3))
    assert after[0].servers == ["rollout-0", "rollout-2"], "of the newest evaluation"
    assert (after[1], after[2].state, after[2].servers) == (first, "queued", [])
    waiting = Assigned("waiting", "queued", 1, None)
    assert plan([waiting, first], fleet(0, 2))[1].state == "running", "no learner is idle, so the run cannot start yet"
    assert plan([waiting, first], fleet(1, 2))[0].servers == ["rollout-0"], "an idle server comes first"


names = st.sampled_from([f"i{index}" for index in range(6)])


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Assigned], list[ServiceRecord]]:
    """Runs whose assignments do not overlap, and services in any state."""
    free = [f"i{index}" for index in range(10)]
    runs = []
    for index in range(draw(st.integers(0, 4))):
        state = draw(st.sampled_from(sorted(set(RUN_STATES) - TERMINAL_STATES)))
        active = state in ACTIVE_STATES
        learner = free.pop(0) if active else None
        servers = [free.pop(0) for _ in range(draw(st.integers(0, 1)))] if active else []
        runs.append(Assigned(f"r{index}", state, draw(st.integers(1, 3)), learner, servers))
    for index in range(draw(st.integers(0, 2))):
        servers = [free.pop(0)] if draw(st.booleans()) else []
        state = "running" if servers else "queued"
        runs.append(Assigned(f"e{index}", state, 1, None, servers, kind="evaluation"))
    services = [
        record(
            draw(st.sampled_from(("learner", "rollout", "verifier"))),
            f"i{index}",
            state=draw(st.sampled_from(("idle", "ready", "failed"))),
        )
        for index in draw(st.sets(st.integers(0, 12)))
    ]
    return runs, services


@given(situations())
def test_no_instance_ever_works_for_two_runs(situation: tuple[list[Assigned], list[ServiceRecord]]) -> None:
    runs, services = situation
    kinds = {item.instance: item.kind for item in services}
    after = plan(runs, services)
    given_out = [name for run in after if run.state in ACTIVE_STATES for name in (run.learner, *run.servers) if name]
    assert len(given_out) == len(set(given_out))
    for before, now in zip(runs, after, strict=True):
        if before.state != "queued" and before.kind == "run":
            assert (before.state, before.learner) == (now.state, now.learner)
        new = set(now.servers) - set(before.servers)
        assert all(kinds[name] == "rollout" for name in new)
        assert len(now.servers) <= max(before.num_servers, len(before.servers))
    assert plan(after, services) == after  # a second look changes nothing


async def create(client: httpx.AsyncClient, body: dict[str, Any], **rollout: Any) -> str:
    reply = await client.post("/v1/runs", json=body | {"rollout": rollout})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


async def shown(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = (await client.get(f"/v1/runs/{run_id}")).json()
    return run


async def reaches(client: httpx.AsyncClient, run_id: str, state: str) -> None:
    async def there() -> bool:
        return bool((await shown(client, run_id))["state"] == state)

    await eventually(there)


async def assigned(instances: Iterable[FakeInstance]) -> list[str | None]:
    return [await instance.assignment() for instance in instances]


async def says(redis: Redis, run_id: str, state: Any, at: float | None = None) -> None:
    await emit(redis, RunStateChanged(run_id=run_id, at=at or time.time(), state=state))


async def test_runs_wait_their_turn_and_capacity_goes_on(
    client: httpx.AsyncClient, loops: None, redis: Redis, learner: FakeInstance, run_body: dict[str, Any]
) -> None:
    server = FakeInstance(redis, "rollout", "rollout-0")
    await server.publish()
    first, third = await create(client, run_body), await create(client, run_body)
    second = await create(client, run_body)
    changed = await client.patch(f"/v1/runs/{second}", json={"priority": 1})
    assert changed.json()["priority"] == 1
    await reaches(client, first, "starting")

    async def places() -> bool:
        return [((await shown(client, run))["queue"] or {}).get("position") for run in (second, third)] == [1, 2]

    await eventually(places)
    waiting = await shown(client, second)
    assert waiting["state"] == "queued"
    assert waiting["queue"]["reason"] == f"The only learner works for {first}."
    assert (await shown(client, first))["queue"] is None
    await says(redis, first, "running")
    await says(redis, first, "failed")
    await reaches(client, second, "starting")

    async def moved() -> bool:
        return await assigned([learner, server]) == [second, second]

    await eventually(moved)
    assert await redis.smembers(streams.RUNS) == {second.encode()}


async def test_why_a_run_waits_follows_the_services(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_body: dict[str, Any]
) -> None:
    run = await create(client, run_body)
    await parts.scheduler.step()
    assert (await shown(client, run))["queue"]["reason"] == "No learner is running."
    await FakeInstance(redis, "learner", "learner-0").publish()
    await parts.scheduler.step()
    assert (await shown(client, run))["queue"]["reason"] == "No rollout server is running."


async def test_two_runs_at_once_and_a_late_server(
    client: httpx.AsyncClient, loops: None, redis: Redis, learner: FakeInstance, run_body: dict[str, Any]
) -> None:
    others = [FakeInstance(redis, "learner", "learner-1")]
    servers = [FakeInstance(redis, "rollout", f"rollout-{index}") for index in range(3)]
    first = await create(client, run_body, num_servers=2)
    second = await create(client, run_body)
    for instance in (*others, servers[0]):
        await instance.publish()
    await reaches(client, first, "starting")
    await servers[1].publish()
    await reaches(client, first, "starting")
    await reaches(client, second, "starting")
    await servers[2].publish()

    async def joined() -> bool:
        names = (await shown(client, first))["rollout_servers"]
        return len(names) == 2 and "rollout-2" in names and await servers[2].assignment() == first

    await eventually(joined)
    assert sorted(str(value) for value in await assigned([learner, *others])) == sorted([first, second])


async def test_pause_stop_and_resume_reach_the_learner(
    client: httpx.AsyncClient, loops: None, redis: Redis, learner: FakeInstance, run_body: dict[str, Any]
) -> None:
    await FakeInstance(redis, "rollout", "rollout-0").publish()
    run_id = await create(client, run_body)
    await reaches(client, run_id, "starting")
    await says(redis, run_id, "running")
    await reaches(client, run_id, "running")

    async def desires(value: str) -> None:
        async def there() -> bool:
            return bool(await redis.get(streams.desired(run_id)) == value.encode())

        await eventually(there)

    await client.post(f"/v1/runs/{run_id}/pause")
    await desires("paused")
    await says(redis, run_id, "paused")
    await reaches(client, run_id, "paused")
    assert await learner.assignment() == run_id
    await client.post(f"/v1/runs/{run_id}/resume")
    await desires("running")
    await says(redis, run_id, "running")
    await reaches(client, run_id, "running")
    await client.post(f"/v1/runs/{run_id}/stop")
    await desires("stopped")
    await says(redis, run_id, "stopped")
    await reaches(client, run_id, "stopped")

    async def free() -> bool:
        return await learner.assignment() is None

    await eventually(free)
    await client.post(f"/v1/runs/{run_id}/resume")
    await reaches(client, run_id, "starting")
    await desires("running")
    assert await learner.assignment() == run_id


@pytest.mark.parametrize("clock", [0.0, -7200.0])
async def test_a_lost_learner_means_starting_again(
    client: httpx.AsyncClient, loops: None, redis: Redis, learner: FakeInstance, run_body: dict[str, Any], clock: float
) -> None:
    """Even if the learner's clock is moved by `clock` seconds between its processes."""
    await FakeInstance(redis, "rollout", "rollout-0").publish()
    run_id = await create(client, run_body)
    await reaches(client, run_id, "starting")

    async def trains() -> None:
        await says(redis, run_id, "running", learner.started_at + 1.0)
        learner.state = "ready"
        await learner.publish()
        await reaches(client, run_id, "running")

    async def restarts() -> None:
        learner.started_at += 60.0 + clock
        learner.state = "starting"
        await learner.publish()

    await trains()
    await learner.vanish()
    await reaches(client, run_id, "starting")
    assert await learner.assignment() == run_id  # it carries the run's pending groups
    await restarts()
    await trains()

    await restarts()  # so fast that its record never expired
    await reaches(client, run_id, "starting")
    await trains()

    await learner.vanish()  # only silent for a while: the same process comes back and has nothing to announce
    await reaches(client, run_id, "starting")
    await learner.publish()
    await reaches(client, run_id, "running")
    text = (await client.get(f"/v1/runs/{run_id}/events", params={"follow": "false"})).text
    assert text.count("Learner learner-0 was lost") == 3


async def test_a_run_whose_servers_cannot_start_fails_with_their_reason(
    client: httpx.AsyncClient,
    parts: Parts,
    loops: None,
    redis: Redis,
    learner: FakeInstance,
    run_body: dict[str, Any],
) -> None:
    servers = [FakeInstance(redis, "rollout", f"rollout-{index}") for index in range(2)]
    for server in servers:
        await server.publish()
    run_id = await create(client, run_body, num_servers=2)
    await eventually(lambda: both_assigned(servers, run_id))
    await fail_to_start(servers[0], run_id, times=5)
    await fail_to_start(servers[1], run_id, times=4)  # one more attempt may succeed
    rounds = parts.status.rounds["scheduler"]
    await eventually(lambda: parts.status.rounds["scheduler"] > rounds + 1)
    assert (await shown(client, run_id))["state"] == "starting"
    await fail_to_start(servers[1], run_id, times=5)
    await reaches(client, run_id, "failed")
    assert "rollout-0: the model has no weights" in (await shown(client, run_id))["reason"]

    await client.post(f"/v1/runs/{run_id}/resume")  # for another attempt
    for server in servers:
        server.run_id, server.state, server.details = None, "idle", {}
        await server.publish()
    await reaches(client, run_id, "starting")


async def both_assigned(servers: list[FakeInstance], run_id: str) -> bool:
    return await assigned(servers) == [run_id] * 2


async def fail_to_start(server: FakeInstance, run_id: str, times: int) -> None:
    server.run_id, server.state = run_id, "failed"
    server.details = {START_FAILURES: str(times), "fault": "the model has no weights"}
    await server.publish()


async def test_an_api_restart_changes_nothing(
    settings: Settings, parts: Parts, redis: Redis, learner: FakeInstance, run_body: dict[str, Any]
) -> None:
    await FakeInstance(redis, "rollout", "rollout-0").publish()
    async with client_of(parts) as client, looping(parts):
        run_id = await create(client, run_body)
        waiting = await create(client, run_body)
        await reaches(client, run_id, "starting")
        await says(redis, run_id, "running")
        await reaches(client, run_id, "running")
        await eventually(lambda: parts.status.rounds.get("scheduler", 0) > 2)
        before = [await shown(client, run_id), await shown(client, waiting)]
    keys = sorted(await redis.keys("turnout:*"))
    values = await redis.mget([key for key in keys if b":assignment:" in key or key.endswith((b"config", b"desired"))])

    again = make_parts(settings, redis, await open_database(settings))
    async with client_of(again) as client, looping(again):
        await eventually(lambda: again.status.rounds.get("scheduler", 0) > 2)
        assert [await shown(client, run_id), await shown(client, waiting)] == before
    assert sorted(await redis.keys("turnout:*")) == keys
    assert values == await redis.mget(
        [key for key in keys if b":assignment:" in key or key.endswith((b"config", b"desired"))]
    )
    await again.close()


async def test_keys_that_redis_lost_are_written_again(
    client: httpx.AsyncClient, loops: None, redis: Redis, learner: FakeInstance, run_body: dict[str, Any]
) -> None:
    await FakeInstance(redis, "rollout", "rollout-0").publish()
    run_id = await create(client, run_body)
    await reaches(client, run_id, "starting")
    await eventually(learner.assignment)
    await redis.delete(streams.config(run_id), streams.desired(run_id), streams.RUNS, streams.assignment("learner-0"))
    await redis.set(streams.assignment("stranger"), run_id)

    async def restored() -> bool:
        there = await redis.exists(streams.config(run_id), streams.desired(run_id), streams.RUNS)
        stranger = await redis.exists(streams.assignment("stranger"))
        return there == 3 and not stranger and await learner.assignment() == run_id

    await eventually(restored)

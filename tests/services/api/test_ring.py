"""A run from creation to its end, with a fake learner and rollout server."""

from __future__ import annotations

import time
from typing import Any

import httpx
from redis.asyncio import Redis

from services.contracts import streams
from services.contracts.events import EvaluationFinished, RunStateChanged, StepFinished, WeightsPublished
from tests.services.api.fakes import LOAD, FakeInstance, FakeRollout, emit, eventually


async def test_a_run_goes_through_its_life(
    client: httpx.AsyncClient,
    loops: None,
    redis: Redis,
    learner: FakeInstance,
    rollout: FakeRollout,
    run_body: dict[str, Any],
) -> None:
    reply = await client.post("/v1/runs", json=run_body)
    assert reply.status_code == 201
    run_id = reply.json()["id"]
    assert reply.headers["location"] == f"/v1/runs/{run_id}"
    for instance in (learner, rollout):
        await eventually(instance.assignment)
        assert await instance.assignment() == run_id
    assert await redis.get(streams.desired(run_id)) == b"running"
    assert await redis.sismember(streams.RUNS, run_id)

    async def state() -> str:
        return str((await client.get(f"/v1/runs/{run_id}")).json()["state"])

    assert await state() == "starting"
    rollout.run_id, rollout.state, rollout.weight_version = run_id, "ready", 0
    await rollout.publish()
    await emit(redis, RunStateChanged(run_id=run_id, at=time.time(), state="running"))
    await eventually(lambda: _is(state, "running"))

    await redis.hset(streams.weights(run_id), mapping={"version": "1", "path": "/w/1", "checksum": "blake3:1"})
    await emit(
        redis,
        StepFinished(run_id=run_id, at=time.time(), step=1, metrics={"reward_mean": 0.5}, groups={"fed": 4}),
        WeightsPublished(run_id=run_id, at=time.time(), version=1, path="/w/1", checksum="blake3:1", bytes=3),
    )
    await eventually(lambda: rollout.weight_version == 1 and rollout.phase == "serving")
    assert rollout.phases == LOAD
    assert rollout.loading == {"path": "/w/1", "checksum": "blake3:1"}

    await emit(
        redis,
        EvaluationFinished(
            run_id=run_id,
            at=time.time(),
            step=1,
            split="validation",
            num_questions=2,
            num_samples=16,
            accuracy=0.25,
            pass_at_k=0.5,
        ),
        RunStateChanged(run_id=run_id, at=time.time(), state="succeeded"),
    )
    await eventually(lambda: _is(state, "succeeded"))
    await eventually(lambda: _is(learner.assignment, None))
    assert await rollout.assignment() is None
    assert not await redis.sismember(streams.RUNS, run_id)
    detail = (await client.get(f"/v1/runs/{run_id}")).json()
    assert (detail["step"], detail["metrics"], detail["accuracy_last"]) == (1, {"reward_mean": 0.5}, 0.25)
    text = (await client.get("/metrics")).text
    assert f'turnout_accuracy{{run_id="{run_id}",samples="16",split="validation"}} 0.25' in text
    assert f'turnout_weight_push_seconds_count{{run_id="{run_id}"}} 1.0' in text


async def _is(read: Any, value: Any) -> bool:
    return bool(await read() == value)

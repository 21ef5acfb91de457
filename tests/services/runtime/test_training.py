"""Which machines train, as rollout servers read it."""

from __future__ import annotations

from redis.asyncio import Redis

from services.contracts.heartbeat import MACHINE, WAITS_FOR_RESUME
from services.runtime.presence import Presence
from services.runtime.training import is_training, publish_training


async def test_only_a_learner_with_a_run_that_is_not_paused_trains(redis: Redis) -> None:
    learner = Presence(redis, "learner", "learner-0", "")
    learner.details[MACHINE] = "here"

    async def seen(machine: str) -> bool:
        await publish_training(redis, [learner.record()])
        return await is_training(redis, machine)

    assert not await is_training(redis, "here"), "nothing has been published"
    assert not await seen("here"), "the learner is idle"
    learner.run_id = "run"
    assert await seen("here")
    assert not await seen("elsewhere")
    learner.waits_for(WAITS_FOR_RESUME)
    assert not await seen("here"), "the run is paused"
    learner.waits_for("groups")
    assert await seen("here")

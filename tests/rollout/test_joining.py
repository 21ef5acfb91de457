"""A rollout server takes up a run whole or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from services.contracts import streams
from services.contracts.errors import ConfigurationError
from services.contracts.run_config import parse_run_config
from services.rollout.engine import spec_for
from services.rollout.service import Supervisor
from services.runtime.life import Service
from services.runtime.registry import Presence
from services.runtime.settings import Settings
from tests.learner.ring import put_run, run_values


async def test_a_run_that_cannot_be_taken_up_is_not_served_with_the_last_runs_engine(
    redis: Redis, tmp_path: Path
) -> None:
    """Its configuration is refused, or cannot be read for an outage, while the engine of the run before is still there:
    that would sample its prompts with another model."""
    settings = Settings(home=tmp_path, instance="rollout-0")
    supervisor = Supervisor(Service(settings, redis, Presence(redis, "rollout", "rollout-0", ""), FastAPI()))
    engine: Any = SimpleNamespace(errored=False)
    supervisor.server.engine, supervisor.server.run_id = engine, "before"
    supervisor.server._move("serving")
    supervisor._spec = spec_for(parse_run_config(run_values()), settings, "rollout-0")
    refused = run_values()
    refused["model"]["trust_remote_code"] = True
    await put_run(redis, "run", refused)
    await redis.set(streams.assignment("rollout-0"), "run")
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="trust_remote_code"):
            await supervisor._tick()
        supervisor._retry_at = 0.0
    assert supervisor._worker is None

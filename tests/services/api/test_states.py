"""The state machine, for every pair of states and both sources: a learner's event and the API's own change."""

from __future__ import annotations

import itertools
import time
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.api.container import Parts
from services.api.live.journal import apply_state
from services.api.storage.runs import Run
from services.contracts.errors import ConflictError
from services.contracts.events import RunStateChanged
from services.contracts.states import RUN_STATES, TERMINAL_STATES, TRANSITIONS, RunState
from tests.services.api.fakes import FakeInstance

PAIRS = list(itertools.product(RUN_STATES, RUN_STATES))


async def in_state(parts: Parts, client: httpx.AsyncClient, body: dict[str, Any], state: RunState) -> str:
    """A run in `state`, without the path to it."""
    run_id = str((await client.post("/v1/runs", json=body)).json()["id"])
    async with parts.database.write() as session:
        run = await session.get(Run, run_id)
        assert run is not None
        apply_state(run, state, "", time.time())
    return run_id


async def state_of(parts: Parts, run_id: str) -> str:
    async with parts.database.read() as session:
        run = await session.get(Run, run_id)
        assert run is not None
        return run.state


async def test_every_pair_of_states(parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    for old, new in PAIRS:
        allowed = old == new or new in TRANSITIONS[old]
        told = await in_state(parts, client, run_body, old)
        await parts.journal.store([RunStateChanged(run_id=told, at=time.time(), state=new)])
        assert await state_of(parts, told) == (new if allowed else old), (old, new)

        changed = await in_state(parts, client, run_body, old)
        async with parts.database.write() as session:
            run = await session.get(Run, changed)
            assert run is not None
            if allowed:
                await parts.journal.change_state(session, run, new)
            else:
                with pytest.raises(ConflictError):
                    await parts.journal.change_state(session, run, new)
        assert await state_of(parts, changed) == (new if allowed else old), (old, new)


ACTIONS = {
    # action: state -> (status, state afterwards, desired afterwards)
    "stop": {
        "queued": (200, "stopped", "stopped"),
        "starting": (200, "stopping", "stopped"),
        "running": (200, "stopping", "stopped"),
        "paused": (200, "stopping", "stopped"),
        "stopping": (200, "stopping", "stopped"),
        "stopped": (200, "stopped", "running"),
        "succeeded": (409, "succeeded", "running"),
        "failed": (409, "failed", "running"),
    },
    "pause": {
        "queued": (409, "queued", "running"),
        "starting": (200, "starting", "paused"),
        "running": (200, "running", "paused"),
        "paused": (200, "paused", "paused"),
        "stopping": (409, "stopping", "running"),
        "stopped": (409, "stopped", "running"),
        "succeeded": (409, "succeeded", "running"),
        "failed": (409, "failed", "running"),
    },
    "resume": {
        "queued": (200, "queued", "running"),
        "starting": (200, "starting", "running"),
        "running": (200, "running", "running"),
        "paused": (200, "paused", "running"),
        "stopping": (409, "stopping", "running"),
        "stopped": (200, "queued", "running"),
        "succeeded": (409, "succeeded", "running"),
        "failed": (200, "queued", "running"),
    },
}


@pytest.mark.parametrize("action", ACTIONS)
async def test_what_people_may_do_in_each_state(
    parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any], action: str
) -> None:
    for state in RUN_STATES:
        run_id = await in_state(parts, client, run_body, state)
        status, after, desired = ACTIONS[action][state]
        reply = await client.post(f"/v1/runs/{run_id}/{action}")
        assert reply.status_code == status, (state, reply.text)
        shown = (await client.get(f"/v1/runs/{run_id}")).json()
        assert (shown["state"], shown["desired"]) == (after, desired), state
        if status == 409:
            assert reply.headers["content-type"] == "application/problem+json"
            assert state in reply.json()["detail"]
            assert reply.json()["remedy"]


async def test_delete_takes_only_ended_runs(parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    for state in RUN_STATES:
        run_id = await in_state(parts, client, run_body, state)
        reply = await client.delete(f"/v1/runs/{run_id}")
        assert reply.status_code == (204 if state in TERMINAL_STATES else 409), state
        assert (await client.get(f"/v1/runs/{run_id}")).status_code == (404 if state in TERMINAL_STATES else 200)


async def test_stop_now_ends_a_run_whose_learner_is_gone(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_body: dict[str, Any], learner: FakeInstance
) -> None:
    abandoned = await in_state(parts, client, run_body, "running")
    reply = await client.post(f"/v1/runs/{abandoned}/stop", params={"now": "true"})
    assert reply.json()["state"] == "stopped"

    worked_on = await in_state(parts, client, run_body, "running")
    async with parts.database.write() as session:
        run = await session.get(Run, worked_on)
        assert run is not None
        run.learner = learner.instance
    reply = await client.post(f"/v1/runs/{worked_on}/stop", params={"now": "true"})
    assert (reply.json()["state"], reply.json()["desired"]) == ("stopping", "stopped_now")
    await client.post(f"/v1/runs/{worked_on}/stop")  # a later graceful stop does not undo the first
    assert (await client.get(f"/v1/runs/{worked_on}")).json()["desired"] == "stopped_now"

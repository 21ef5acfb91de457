"""Any interleaving of workers that take, crash, come back, take over, repeat themselves and meet rubbish: each message
has exactly one successor. Found by search, on a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.messages import DeadLetter, PromptTask
from services.runtime.connection import connect
from services.runtime.queue import BODY, Delivery, Queue
from tests.runtime.test_queue import NEXT, PROMPTS, task

T = TypeVar("T")
WORKERS = st.sampled_from(["a", "b", "c"])
CURSOR = streams.feeder("run-1")
DEAD = streams.dead("run-1")


class Workers(RuleBasedStateMachine):
    """Three workers of one group. What a worker holds in its memory is all that a crash takes from it."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.redis: Redis = self.wait(self.connected())
        self.num_fed = 0
        self.num_junk = 0
        self.held: dict[str, list[Delivery[PromptTask]]] = {name: [] for name in "abc"}
        self.old: list[Delivery[PromptTask]] = []
        """What somebody has held at some time: late, repeated calls come with these."""

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    async def connected(self) -> Redis:
        redis = connect(self.url)
        await redis.flushall()
        return redis

    def teardown(self) -> None:
        """Whoever is left takes over and ends the work; then nothing is missing and nothing doubled."""
        queue = Queue(self.redis, "g", "last")
        while self.wait(queue.depth(PROMPTS)):
            found = self.wait(queue.reclaim(PROMPTS, PromptTask, idle_seconds=0, count=50))
            found += self.wait(queue.receive([PROMPTS], PromptTask, count=50, block_seconds=0.001))
            for delivery in found:
                self.wait(queue.forward(delivery, NEXT, delivery.message))
        assert sorted(self.successors()) == list(range(self.num_fed))
        assert len(self.dead()) == self.num_junk
        self.wait(self.redis.aclose())
        self.loop.close()

    def queue(self, name: str) -> Queue:
        """A worker's queue; a new object each time, as after a restart."""
        return Queue(self.redis, "g", name)

    def take(self, name: str, found: list[Delivery[PromptTask]]) -> None:
        self.held[name] += found
        self.old += found

    def successors(self) -> list[int]:
        entries = self.wait(self.redis.xrange(NEXT))
        return [codec.decode(fields[BODY], PromptTask).sequence for _, fields in entries]

    def dead(self) -> list[DeadLetter]:
        return [codec.decode(fields[BODY], DeadLetter) for _, fields in self.wait(self.redis.xrange(DEAD))]

    @rule(count=st.integers(1, 3), repeated=st.booleans())
    def feed(self, count: int, repeated: bool) -> None:
        """Feed the next tasks; a feeder whose reply got lost calls again."""
        tasks = [task(number) for number in range(self.num_fed, self.num_fed + count)]
        for _ in range(1 + repeated):
            at = self.wait(self.queue("feeder").feed(PROMPTS, CURSOR, "train", self.num_fed, tasks))
            assert at == self.num_fed + count
        self.num_fed += count

    @rule(payload=st.binary(max_size=8))
    def poison(self, payload: bytes) -> None:
        self.wait(self.redis.xadd(PROMPTS, {BODY: payload}))
        self.num_junk += 1

    @rule(name=WORKERS, count=st.integers(1, 3))
    def receive(self, name: str, count: int) -> None:
        self.take(name, self.wait(self.queue(name).receive([PROMPTS], PromptTask, count=count, block_seconds=0.001)))

    @rule(name=WORKERS)
    def crash_and_come_back(self, name: str) -> None:
        self.held[name] = []
        self.take(name, self.wait(self.queue(name).own_pending(PROMPTS, PromptTask)))

    @rule(name=WORKERS)
    def crash(self, name: str) -> None:
        self.held[name] = []

    @rule(name=WORKERS, count=st.integers(1, 3))
    def reclaim(self, name: str, count: int) -> None:
        """Take over, also from workers that are only slow."""
        self.take(name, self.wait(self.queue(name).reclaim(PROMPTS, PromptTask, idle_seconds=0, count=count)))

    @rule(name=WORKERS, gives_up=st.booleans())
    def touch_or_hand_back(self, name: str, gives_up: bool) -> None:
        queue = self.queue(name)
        self.wait(queue.hand_back(self.held[name]) if gives_up else queue.touch(self.held[name]))

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def forward(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, held in self.held.items() if held]))
        delivery = self.held[name].pop(0)
        self.wait(self.queue(name).forward(delivery, NEXT, delivery.message))

    @precondition(lambda self: self.old)
    @rule(data=st.data(), name=WORKERS)
    def forward_late(self, data: st.DataObject, name: str) -> None:
        """Something held long ago, perhaps forwarded since, perhaps somebody else's by now."""
        delivery = data.draw(st.sampled_from(self.old))
        self.wait(self.queue(name).forward(delivery, NEXT, delivery.message))

    @invariant()
    def each_message_is_in_one_place(self) -> None:
        done = self.successors()
        assert len(set(done)) == len(done)
        waiting = self.wait(self.redis.xlen(PROMPTS))
        assert waiting + len(done) + len(self.dead()) == self.num_fed + self.num_junk


@pytest.mark.timeout(240)
def test_each_message_has_exactly_one_successor_whatever_happens(valkey_url: str) -> None:
    Workers.url = valkey_url
    run_state_machine_as_test(
        Workers,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            phases=[Phase.generate],  # making a failure smaller would take minutes on a real server
        ),
    )

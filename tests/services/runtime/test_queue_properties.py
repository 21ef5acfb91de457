"""Any interleaving of workers that take, crash, come back, take over, repeat themselves and meet rubbish and messages
that kill them: each message has exactly one successor, or is a dead letter for a reason. Found by search, on a real
Valkey."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.messages import DeadLetter, PromptTask
from services.runtime.connection import connect
from services.runtime.queue.queue import BODY, MAX_DELIVERIES, MAX_TOGETHER, Delivery, Queue, Suspect
from tests.services.runtime.test_queue import NEXT, PROMPTS, task

T = TypeVar("T")
WORKERS = st.sampled_from(["a", "b", "c"])
CURSOR = streams.feeder("run-1")
DEAD = streams.dead("run-1")


def is_deadly(delivery: Delivery[PromptTask]) -> bool:
    return delivery.message.sequence % 5 == 1


class Workers(RuleBasedStateMachine):
    """Three workers of one group. What a worker holds in its memory is all that a crash takes from it.

    Every fifth task kills whoever works on it, with all that it holds. Workers keep the rules of real ones: a suspect
    is opened with nothing else held, and those that live say so after each take-over (`touch`).
    """

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.redis: Redis = self.wait(self.connected())
        self.num_fed = 0
        self.num_junk = 0
        self.held: dict[str, list[Delivery[PromptTask]]] = {name: [] for name in "abc"}
        self.waiting: dict[str, Suspect] = {}
        self.deaths: Counter[str] = Counter()
        """By message id: how often a worker died that held it."""
        self.deaths_alone: Counter[str] = Counter()
        self.given_out: Counter[str] = Counter()
        """By message id; not to workers that handed it back, nor while another that lived had it."""
        self.old: list[Delivery[PromptTask]] = []
        """Deliveries that some consumer has held at some time, for late and repeated calls."""

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    async def connected(self) -> Redis:
        redis = connect(self.url)
        await redis.flushall()
        await redis.config_set("hz", 500)  # a read that finds nothing ends with the server's next tick
        return redis

    def teardown(self) -> None:
        """Workers continue until nothing is left; then nothing is missing and nothing doubled."""
        while self.wait(self.redis.xlen(PROMPTS)):
            for name in "abc":
                self.open(name)
                while self.held[name]:
                    self.work(name)
            self.take_over("a", 50)
            self.receive("a", 50)
        fatal = [letter.message_id for letter in self.dead() if "given out" in letter.reason]
        assert len(self.dead()) == self.num_junk + len(fatal)
        assert len(set(self.successors())) + len(fatal) == self.num_fed
        for message_id in fatal:
            assert self.deaths[message_id] >= MAX_DELIVERIES
            assert self.deaths_alone[message_id] >= MAX_DELIVERIES - MAX_TOGETHER
        assert max(self.given_out.values(), default=0) <= MAX_DELIVERIES
        self.wait(self.redis.config_set("hz", 10))
        self.wait(self.redis.aclose())
        self.loop.close()

    def queue(self, name: str) -> Queue:
        """A worker's queue; a new object each time, as after a restart."""
        return Queue(self.redis, "g", name)

    def take(self, name: str, found: list[Delivery[PromptTask]]) -> None:
        for item in found:
            others = [each.message_id for other, held in self.held.items() if other != name for each in held]
            self.given_out[item.message_id] += item.message_id not in others
        self.held[name] += found
        self.old += [item for item in found if not is_deadly(item)]
        for other in "abc":
            self.touch(other)

    def touch(self, name: str) -> None:
        suspects = [self.waiting[name]] if name in self.waiting else []
        self.wait(self.queue(name).touch([*self.held[name], *suspects]))

    def is_free(self, name: str) -> bool:
        return name not in self.waiting and not any(item.is_suspect for item in self.held[name])

    def die(self, name: str) -> None:
        for item in self.held[name]:
            self.deaths[item.message_id] += 1
            self.deaths_alone[item.message_id] += len(self.held[name]) == 1
        self.held[name] = []
        self.waiting.pop(name, None)

    def work(self, name: str) -> None:
        """The oldest message held is worked on."""
        delivery = self.held[name][0]
        if is_deadly(delivery):
            return self.die(name)
        self.held[name].pop(0)
        self.wait(self.queue(name).forward(delivery, NEXT, delivery.message))

    def successors(self) -> list[int]:
        return self.successors_of(self.wait(self.redis.xrange(NEXT)))

    def successors_of(self, entries: Any) -> list[int]:
        return [codec.decode(fields[BODY], PromptTask).sequence for _, fields in entries]

    def dead(self) -> list[DeadLetter]:
        return [codec.decode(fields[BODY], DeadLetter) for _, fields in self.wait(self.redis.xrange(DEAD))]

    @initialize()
    def begin(self) -> None:
        """Start with held messages, since few searches would reach forwarding otherwise."""
        self.feed(3, repeated=False)
        self.receive("a", 2)

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
        if self.is_free(name):
            queue = self.queue(name)
            self.take(name, self.wait(queue.receive([PROMPTS], PromptTask, count=count, block_seconds=0.001)))

    @rule(name=WORKERS)
    def crash_and_come_back(self, name: str) -> None:
        self.die(name)
        self.take(name, self.wait(self.queue(name).resume(PROMPTS, PromptTask)))

    @rule(name=WORKERS)
    def crash(self, name: str) -> None:
        self.die(name)

    @rule(name=WORKERS, count=st.integers(1, 3))
    def take_over(self, name: str, count: int) -> None:
        """Also from workers that are only slow; these say afterwards that they live."""
        if not self.is_free(name):
            return
        in_hand = {item.message_id for item in self.held[name]}
        found = self.wait(self.queue(name).take_over(PROMPTS, PromptTask, idle_seconds=0, count=count, in_hand=in_hand))
        if found.suspect is not None:
            self.waiting[name] = found.suspect
        self.take(name, found.deliveries)

    @rule(name=WORKERS)
    def open(self, name: str) -> None:
        if name in self.waiting and not self.held[name]:
            delivery = self.wait(self.queue(name).open(self.waiting.pop(name), PromptTask))
            self.take(name, [] if delivery is None else [delivery])

    @rule(name=WORKERS)
    def hand_back(self, name: str) -> None:
        suspects = [self.waiting.pop(name)] if name in self.waiting else []
        self.wait(self.queue(name).hand_back([*self.held[name], *suspects]))
        for item in self.held[name]:
            self.given_out[item.message_id] -= 1
        self.held[name] = []

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def forward(self, data: st.DataObject) -> None:
        self.work(data.draw(st.sampled_from([name for name, held in self.held.items() if held])))

    @precondition(lambda self: self.old)
    @rule(data=st.data(), name=WORKERS)
    def forward_late(self, data: st.DataObject, name: str) -> None:
        """A delivery held long ago, which may have been forwarded or taken over since."""
        delivery = data.draw(st.sampled_from(self.old))
        self.wait(self.queue(name).forward(delivery, NEXT, delivery.message))

    @precondition(lambda self: self.old)
    @rule(data=st.data(), name=WORKERS, ticks=st.integers(0, 12))
    def forward_together(self, data: st.DataObject, name: str, ticks: int) -> None:
        """Several at once, the same one twice perhaps; after some turns of the loop some callers are cancelled."""
        chosen = data.draw(st.lists(st.sampled_from(self.old), min_size=1, max_size=5))
        leaving = data.draw(st.sets(st.integers(0, len(chosen) - 1)))
        self.wait(self.forward_some(self.queue(name), chosen, leaving, ticks))

    async def forward_some(
        self, queue: Queue, chosen: list[Delivery[PromptTask]], leaving: set[int], ticks: int
    ) -> None:
        before = set(self.successors_of(await self.redis.xrange(NEXT)))
        tasks = [asyncio.create_task(queue.forward(item, NEXT, item.message)) for item in chosen]
        for _ in range(ticks):
            await asyncio.sleep(0)
        for number in leaving:
            tasks[number].cancel()
        await asyncio.wait(tasks)
        for item, forwarded in zip(chosen, tasks, strict=True):
            if not forwarded.cancelled() and forwarded.result():
                assert item.message.sequence not in before, "a result is true once"
                before.add(item.message.sequence)

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
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            phases=[Phase.generate],  # making a failure smaller would take minutes on a real server
        ),
    )

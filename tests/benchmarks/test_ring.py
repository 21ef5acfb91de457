"""Many servers on a virtual clock: services' own loops, feeder, batcher and ledger on a real Valkey server."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from benchmarks.simulation import clock
from benchmarks.simulation.learner import run_config
from benchmarks.simulation.ring import RUN, Outcome, simulate
from benchmarks.simulation.scenario import Scenario
from benchmarks.simulation.servers import RolloutServer, TimedJudge
from services.contracts import streams
from services.contracts.messages import Question, Rollout, Verdict
from services.learner.groups.feeder import Feeder
from services.learner.groups.questions import Mixture
from services.runtime.process import end
from services.runtime.queue.queue import Queue

SMALL = Scenario(
    servers=4,
    verifiers=1,
    prompts_per_step=24,
    steps=8,
    checkpoint_every=3,
    max_num_seqs=32,
    median_tokens=100,
    max_tokens=1024,
)


def trained_once(outcome: Outcome) -> list[int]:
    """Sequence numbers in the order of training; asserts what holds of every ring."""
    scenario = outcome.scenario
    steps = sorted(outcome.last_steps, key=lambda step: step.step)
    trained = [sequence for step in steps for sequence in step.sequences]
    assert len(trained) == len(set(trained)) == scenario.steps * scenario.prompts_per_step
    assert trained == sorted(trained)
    assert max(outcome.ages) <= scenario.max_staleness
    assert outcome.left == {"prompts": 0, "completions": 0, "scored": 0, "dead": 0}
    assert outcome.fed == outcome.ledger.decided == len(trained) + outcome.ledger.num_dropped
    return trained


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_servers_and_learner_crash_and_every_group_is_trained_once(valkey_url: str, max_staleness: int) -> None:
    scenario = dataclasses.replace(SMALL, max_staleness=max_staleness, failures_an_hour=40.0, learner_crashes=(2, 5))
    outcome = simulate(scenario, valkey_url)
    assert outcome.crashes > 0
    again = [step for step in outcome.steps if sum(other.step == step.step for other in outcome.steps) > 1]
    assert {step.step for step in again} == {1, 2, 4, 5}
    for step in again:  # a replayed step is made of the same groups
        assert all(other.sequences == step.sequences for other in again if other.step == step.step)
    trained_once(outcome)


def test_consumers_that_are_held_back_pile_nothing_up(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifiers that give nothing on for four minutes, or a learner of a tenth of the servers' speed: the feeder's
    credit bounds streams and memory as in a ring in balance, whatever the speeds, and all is trained in the end."""
    scenario = dataclasses.replace(SMALL, steps=9)
    credit = scenario.groups_in_flight
    verdict = TimedJudge.verdict

    async def late_verdict(self: TimedJudge, question: Question, rollout: Rollout, *_: object) -> Verdict:
        await asyncio.sleep(max(0.0, 240 - asyncio.get_running_loop().time()))
        return await verdict(self, question, rollout)

    brisk = simulate(scenario, valkey_url)
    slow_learner = simulate(dataclasses.replace(scenario, learner_share=0.1), valkey_url)
    monkeypatch.setattr(TimedJudge, "verdict", late_verdict)
    held_verifier = simulate(scenario, valkey_url)
    assert held_verifier.largest["completions"] == credit, "all that may be fed lies before the verifiers"
    assert held_verifier.virtual_seconds > 240
    assert slow_learner.waiting_share < 0.05, "groups are always there before the learner is"
    for outcome in (brisk, slow_learner, held_verifier):
        trained_once(outcome)
        assert outcome.largest["prompts"] <= credit
        assert outcome.largest["completions"] <= credit
        assert outcome.largest["all"] <= credit + scenario.checkpoint_every * scenario.prompts_per_step
        assert outcome.meter.largest_bytes < 1.25 * brisk.meter.largest_bytes


def test_staleness_hides_stragglers(valkey_url: str) -> None:
    shares = []
    for max_staleness in (0, 2):
        outcome = simulate(dataclasses.replace(SMALL, max_staleness=max_staleness), valkey_url)
        trained_once(outcome)
        shares.append(outcome.throughput)
    assert shares[1] > 1.5 * shares[0]


def test_virtual_time_passes_without_waiting_and_never_during_a_call(valkey_url: str) -> None:
    async def play() -> tuple[float, Any]:
        redis: Any = clock.VirtualRedis.from_url(valkey_url)
        loop = asyncio.get_running_loop()
        await redis.xgroup_create("stream", "group", id="0", mkstream=True)
        assert not await redis.xreadgroup("group", "a", {"stream": ">"}, block=3_600_000)
        assert loop.time() == pytest.approx(3600, abs=1)
        reading = asyncio.create_task(redis.xreadgroup("group", "a", {"stream": ">"}, block=3_600_000))
        await asyncio.sleep(10)
        await redis.xadd("stream", {"m": "x"})
        found = await reading
        await redis.aclose()
        return loop.time(), found

    at, found = clock.run(play())
    assert found
    assert at == pytest.approx(3610, abs=1)


def test_prompts_that_come_during_a_weight_update_are_sampled_when_it_ends(valkey_url: str) -> None:
    """They do not wait for a group that was under way to end: the engine would be half empty meanwhile."""
    scenario = dataclasses.replace(SMALL, median_tokens=1000, sigma=0.0, group_size=2, decode_per_sequence_seconds=0.0)

    async def play() -> tuple[float, float]:
        redis: Any = clock.VirtualRedis.from_url(valkey_url)
        loop = asyncio.get_running_loop()
        server = RolloutServer(scenario, redis, RUN, 0, {"crashes": 0, "decoded": [0.0]})
        serving = asyncio.create_task(server.run())
        queue = Queue(redis, streams.GROUP_LEARNER, "test")
        questions = Mixture.of([Question(id="0", kind="mcq", prompt="?", answer="B")])
        feeder = Feeder(queue, RUN, run_config(scenario), questions)
        try:
            await queue.publish(streams.prompts(RUN), feeder.task(0, 0))
            await asyncio.sleep(2)
            assert server.engine is not None
            update = asyncio.create_task(server.push(1))
            await asyncio.sleep(0.95)
            await queue.publish(streams.prompts(RUN), feeder.task(1, 0))
            await update
            resumed = loop.time()
            while int(await redis.xlen(streams.completions(RUN))) < 2:
                await asyncio.sleep(0.01)
            return resumed, loop.time()
        finally:
            await end([serving])
            await redis.aclose()

    resumed, ended = clock.run(play())
    assert ended - resumed == pytest.approx(1000 * scenario.decode_base_seconds, abs=0.05)

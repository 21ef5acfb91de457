"""Messages on `scored` are input: one that cannot be trained becomes a dead letter, and the run continues."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from redis.asyncio import Redis

from services.contracts import codec, events, streams
from services.contracts.arrays import TokenIds
from services.contracts.messages import DeadLetter, ScoredGroup
from services.runtime.process import end
from tests.services.learner.programs import Programs
from tests.services.learner.ring import VOCABULARY, EventLog, FakeRing, put_run, run_values


def with_tokens(group: ScoredGroup, prompt: bool) -> ScoredGroup:
    """The same with one token outside the model's vocabulary, in the prompt or in a response."""
    completed = group.group
    if prompt:
        changes: dict[str, object] = {"prompt_token_ids": TokenIds([*completed.prompt_token_ids[:-1], 1 << 20])}
    else:
        first = completed.rollouts[0]
        tokens = TokenIds([*first.token_ids[:-1], VOCABULARY])
        changes = {"rollouts": [msgspec.structs.replace(first, token_ids=tokens), *completed.rollouts[1:]]}
    return msgspec.structs.replace(group, group=msgspec.structs.replace(completed, **changes))


@pytest.mark.timeout(120)
async def test_a_token_beyond_the_vocabulary_fails_no_run(
    valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs
) -> None:
    """A group that is bad once is sampled again; one that is bad each time is dropped."""
    broken = {"train-2": 1, "train-5": 99}

    def change(group: ScoredGroup) -> ScoredGroup:
        name = group.group.task.group_id
        if not broken.get(name):
            return group
        broken[name] -= 1
        return with_tokens(group, prompt=name == "train-5")

    await put_run(redis, "run", run_values())
    ring = asyncio.create_task(FakeRing(redis, "run", change).run())
    log = EventLog(redis)
    with programs.training(valkey_url, tmp_path, "run") as process:
        code = await asyncio.to_thread(process.wait, 100)
    reasons = [event.reason for event in await log.of(events.RunStateChanged)]
    assert code == 0, reasons
    last = (await log.of(events.StepFinished))[-1]
    assert last.groups == {
        "fed": 17,
        "trained": 16,
        "in_flight": 0,
        "replaced": 0,
        "dropped_stale": 0,
        "dropped_faulty": 0,
        "dropped_too_few": 0,
        "dropped_lost": 1,
        "dropped_fatal": 0,
    }
    letters = [
        codec.decode(fields[b"m"], DeadLetter) for _, fields in cast(Any, await redis.xrange(streams.dead("run")))
    ]
    assert len(letters) == 1 + 3
    assert {letter.reason.partition(" has ")[0] for letter in letters} == {
        "rollout 0 of group train-2",
        "the prompt of group train-5",
    }
    assert all(f"vocabulary of {VOCABULARY}" in letter.reason for letter in letters)
    notes = [event.text for event in await log.of(events.Note)]
    assert any("train-5" in text and "vocabulary" in text for text in notes)
    await end([ring], seconds=10)

"""Events become rows, lists and server-sent events: each event once, whatever happens in between."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from services.api.container import Parts
from services.api.live import broadcaster
from services.api.live.event_stream import event_stream
from services.api.live.journal import Journal
from services.contracts import streams
from services.contracts.events import (
    CheckpointWritten,
    EvaluationFinished,
    Note,
    QuestionCount,
    RunStateChanged,
    Sample,
    SamplesTaken,
    StepFinished,
    WeightsPublished,
)
from services.contracts.states import RunState
from tests.services.api.fakes import emit, eventually, looping


@pytest.fixture
async def run_id(client: httpx.AsyncClient, run_body: dict[str, Any]) -> str:
    return str((await client.post("/v1/runs", json=run_body)).json()["id"])


def step_event(run_id: str, step: int, **metrics: float) -> StepFinished:
    return StepFinished(run_id=run_id, at=1000.0 + step, step=step, metrics=metrics or {"reward_mean": 0.5})


def every_event(run_id: str, folder: Path) -> list[Any]:
    sample = Sample(index=0, text="x", tokens=["x"], reward=1.0, correct=True, route="grpo", advantage=0.5)
    return [
        RunStateChanged(run_id=run_id, at=1.0, state="starting"),
        RunStateChanged(run_id=run_id, at=2.0, state="running"),
        StepFinished(run_id=run_id, at=3.0, step=1, metrics={"reward_mean": 0.5}, groups={"fed": 4, "trained": 2}),
        EvaluationFinished(
            run_id=run_id,
            at=4.0,
            step=1,
            split="validation",
            num_questions=4,
            num_samples=16,
            accuracy=0.5,
            pass_at_k=0.75,
        ),
        EvaluationFinished(
            run_id=run_id,
            at=4.5,
            step=2,
            split="validation",
            num_questions=4,
            num_samples=16,
            accuracy=0.25,
            pass_at_k=0.75,
        ),
        CheckpointWritten(run_id=run_id, at=5.0, step=1, path=str(folder), bytes=10, seconds=0.1),
        CheckpointWritten(run_id=run_id, at=6.0, step=2, path=str(folder / "gone"), bytes=10, seconds=0.1),
        WeightsPublished(run_id=run_id, at=7.0, version=1, path="/w", checksum="blake3:1", bytes=9),
        Note(run_id=run_id, at=8.0, level="warning", source="learner-0", text="something"),
        SamplesTaken(
            run_id=run_id, at=9.0, step=1, group_id="train-0", question_id="q", prompt="p", answer="a", samples=[sample]
        ),
    ]


async def listed(client: httpx.AsyncClient, run_id: str, name: str) -> list[dict[str, Any]]:
    reply = await client.get(f"/v1/runs/{run_id}/{name}")
    assert reply.status_code == 200, reply.text
    items: list[dict[str, Any]] = reply.json()["items"]
    return items


async def entries(client: httpx.AsyncClient, run_id: str, **arguments: Any) -> list[tuple[int, str, dict[str, Any]]]:
    """The stored part of the event stream, parsed: (id, type, data)."""
    reply = await client.get(f"/v1/runs/{run_id}/events", params={"follow": "false"}, **arguments)
    assert reply.headers["content-type"].startswith("text/event-stream")
    return parse(reply.text)


def parse(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith((":", "retry")))
        if fields:
            found.append((int(fields["id"]), fields["event"], msgspec.json.decode(fields["data"])))
    return found


async def test_a_run_shows_which_questions_it_learned_and_forgot(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_id: str
) -> None:
    scores = {0: (4, 0, 1), 10: (4, 3, 2), 20: (0, 4, 2)}
    for step, correct in scores.items():
        questions = [QuestionCount(f"q{n}", "mcq", 4, count) for n, count in enumerate(correct)]
        of_set: Any = {"split": "math", "num_questions": 3, "num_samples": 4, "accuracy": 0.5, "pass_at_k": 0.5}
        await emit(redis, EvaluationFinished(run_id=run_id, at=1.0, step=step, questions=questions, **of_set))
    await emit(redis, EvaluationFinished(run_id=run_id, at=1.0, step=30, **of_set))
    await parts.ingest.step()
    await parts.ingest.step()
    url = f"/v1/runs/{run_id}/evaluations/difference"
    found = (await client.get(url, params={"first": 0, "second": 20})).json()
    (change,) = found["sets"]
    assert [item["question_id"] for item in change["learned"]] == ["q1", "q2"]
    assert [item["question_id"] for item in change["forgotten"]] == ["q0"]
    assert (change["set"], change["num_questions"], found["first"], found["second"]) == ("math", 3, "0", "20")
    for second, words in ((7, "Choose one of 0, 10, 20, 30."), (30, "Choose a later one")):
        refused = await client.get(url, params={"first": 0, "second": second})
        assert (refused.status_code, refused.json()["field"]) == (404, "second")
        assert words in refused.json()["remedy"]
    assert all("questions" not in item for item in await listed(client, run_id, "evaluations"))
    assert all("questions" not in data for _, _, data in await entries(client, run_id))


async def test_events_become_rows_lists_and_stream(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_id: str, tmp_path: Path
) -> None:
    await emit(redis, *every_event(run_id, tmp_path))
    await parts.ingest.step()  # the first round looks for pending messages
    await parts.ingest.step()
    run = (await client.get(f"/v1/runs/{run_id}")).json()
    assert (run["state"], run["step"], run["started_at"], run["groups"]) == (
        "running",
        1,
        2.0,
        {"fed": 4, "trained": 2},
    )
    assert await listed(client, run_id, "steps") == [
        {"step": 1, "at": 3.0, "metrics": {"reward_mean": 0.5}, "groups": {"fed": 4, "trained": 2}}
    ]
    assert (await listed(client, run_id, "evaluations"))[0]["pass_at_k"] == 0.75
    assert (run["accuracy_first"], run["accuracy_last"]) == (0.5, 0.25)
    assert [(item["step"], item["exists"]) for item in await listed(client, run_id, "checkpoints")] == [
        (1, True),
        (2, False),
    ]
    assert (await listed(client, run_id, "samples"))[0]["samples"][0]["route"] == "grpo"
    found = await entries(client, run_id)
    assert [kind for _, kind, _ in found] == [
        "state",
        "state",
        "step",
        "evaluation",
        "evaluation",
        "checkpoint",
        "checkpoint",
        "weights",
        "note",
        "samples",
    ]
    assert found[1][2] == {"at": 2.0, "state": "running", "reason": ""}
    assert await redis.xlen(streams.EVENTS) == 0


async def test_events_in_an_answer_that_was_lost_are_stored_in_their_order(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_id: str
) -> None:
    """The connection broke before the reply arrived: the events are pending for the API, which has never seen them."""
    await parts.ingest.step()
    states: list[RunState] = ["starting", "running", "paused", "running"]
    told = [RunStateChanged(run_id=run_id, at=float(at), state=state) for at, state in enumerate(states)]
    await emit(redis, *told[:3])
    await redis.xreadgroup(streams.GROUP_API, parts.ingest.queue.consumer, {streams.EVENTS: ">"})
    await emit(redis, told[3])
    await parts.ingest.step()
    assert [data["state"] for _, kind, data in await entries(client, run_id) if kind == "state"] == states
    await emit(redis, Note(run_id=run_id, at=8.0, level="info", source="learner-0", text="the last word"))
    await redis.xreadgroup(streams.GROUP_API, parts.ingest.queue.consumer, {streams.EVENTS: ">"})
    await parts.ingest.step()
    assert (await entries(client, run_id))[-1][1] == "note"
    assert await redis.xlen(streams.EVENTS) == 0


async def test_events_delivered_again_change_nothing(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_id: str, tmp_path: Path
) -> None:
    batch = every_event(run_id, tmp_path)
    await parts.journal.store(batch)
    names = ("steps", "evaluations", "checkpoints", "samples")
    before = [await listed(client, run_id, name) for name in names], await entries(client, run_id)
    metrics = (await client.get("/metrics")).text
    for again in (batch, batch[::-1], batch + batch):
        await parts.journal.store(again)
    assert ([await listed(client, run_id, name) for name in names], await entries(client, run_id)) == before
    assert _ours((await client.get("/metrics")).text) == _ours(metrics)


def _ours(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("turnout_")]


async def test_an_api_that_dies_before_acknowledging_stores_once(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await emit(redis, step_event(run_id, 1), step_event(run_id, 2))
    await parts.ingest.step()
    store = parts.journal.store

    async def store_and_die(batch: Any) -> None:
        await store(batch)
        raise ConnectionError("died here")

    monkeypatch.setattr(parts.journal, "store", store_and_die)
    with pytest.raises(ConnectionError):
        await parts.ingest.step()
    assert await redis.xlen(streams.EVENTS) == 2
    monkeypatch.undo()
    assert await parts.ingest.step() == 2  # its own pending messages, first
    assert await redis.xlen(streams.EVENTS) == 0
    assert [step["step"] for step in await listed(client, run_id, "steps")] == [1, 2]
    assert len(await entries(client, run_id)) == 2


async def test_malformed_and_foreign_events_do_not_stop_the_others(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_id: str
) -> None:
    await redis.xadd(streams.EVENTS, {"m": b"rubbish"})
    await emit(redis, step_event("deleted-run", 1), step_event(run_id, 1))
    async with looping(parts):

        async def stored() -> bool:
            return bool(await listed(client, run_id, "steps"))

        await eventually(stored)
    assert await redis.xlen("turnout:dead") == 1
    assert not parts.status.faults


async def test_an_event_that_the_database_refuses_holds_up_no_other(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_id: str
) -> None:
    await parts.ingest.step()
    await emit(redis, step_event(run_id, 1), step_event(run_id, 2**63), step_event(run_id, 2))
    await parts.ingest.step()
    assert [step["step"] for step in await listed(client, run_id, "steps")] == [1, 2]
    assert (await redis.xlen("turnout:dead"), await redis.xlen(streams.EVENTS)) == (1, 0)


async def test_a_step_trained_again_replaces_the_old_one(parts: Parts, client: httpx.AsyncClient, run_id: str) -> None:
    await parts.journal.store([step_event(run_id, 1), step_event(run_id, 2, reward_mean=0.1)])
    again = StepFinished(run_id=run_id, at=5000.0, step=2, metrics={"reward_mean": 0.9})
    await parts.journal.store([again])
    assert [step["metrics"]["reward_mean"] for step in await listed(client, run_id, "steps")] == [0.5, 0.9]
    assert len(await entries(client, run_id)) == 3


async def test_steps_come_in_pages(parts: Parts, client: httpx.AsyncClient, run_id: str) -> None:
    await parts.journal.store([step_event(run_id, step) for step in range(1, 8)])
    seen: list[int] = []
    after: int | None = 0
    while after is not None:
        page = (await client.get(f"/v1/runs/{run_id}/steps", params={"after": after, "limit": 3})).json()
        seen += [item["step"] for item in page["items"]]
        after = page["next_after"]
    assert seen == list(range(1, 8))


async def test_samples_of_long_responses_come_fewer_at_once(
    parts: Parts, client: httpx.AsyncClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"a": "x", "b": "x", "c": "x" * 1000}
    for name, text in texts.items():
        sample = Sample(index=0, text=text, tokens=[], reward=1.0, correct=True, route="grpo", advantage=0.5)
        group = SamplesTaken(
            run_id=run_id, at=1.0, step=1, group_id=name, question_id="q", prompt="p", answer="", samples=[sample]
        )
        await parts.journal.store([group])
    monkeypatch.setattr("services.api.resources.history.sample_stream.MAX_CHARACTERS", 1000)
    assert [group["group_id"] for group in await listed(client, run_id, "samples")] == ["a", "b"]
    monkeypatch.setattr("services.api.resources.history.sample_stream.MAX_CHARACTERS", 1)
    parts.database.version += 1
    assert [group["group_id"] for group in await listed(client, run_id, "samples")] == ["a"]


async def test_text_with_the_character_zero_is_shown(
    parts: Parts, client: httpx.AsyncClient, run_id: str, database_url: str
) -> None:
    """Models sample it and rows may contain it, but PostgreSQL's text columns cannot hold it."""
    zero = "\u2400" if database_url else "\0"
    sample = Sample(
        index=0, text="a\0b", tokens=["a", "\0", "b"], reward=1.0, correct=True, route="grpo", advantage=0.5
    )
    texts: dict[str, Any] = {"question_id": "q\0", "prompt": "p\0", "answer": "\0"}
    group = SamplesTaken(run_id=run_id, at=1.0, step=1, group_id="train-0", samples=[sample], **texts)
    note = Note(run_id=run_id, at=2.0, level="warning", source="rollout-0", text="odd: \0")
    failed = RunStateChanged(run_id=run_id, at=3.0, state="failed", reason="row \0 is bad")
    await parts.journal.store([group, note, RunStateChanged(run_id=run_id, at=2.5, state="starting"), failed])
    [shown] = await listed(client, run_id, "samples")
    assert (shown["question_id"], shown["prompt"], shown["answer"]) == (f"q{zero}", f"p{zero}", zero)
    assert (shown["samples"][0]["text"], shown["samples"][0]["tokens"]) == ("a\0b", ["a", "\0", "b"])
    assert (await client.get(f"/v1/runs/{run_id}")).json()["reason"] == f"row {zero} is bad"
    assert (await client.get("/v1/runs?name=%00")).status_code == 200


async def test_last_event_id_goes_on_where_it_was(parts: Parts, client: httpx.AsyncClient, run_id: str) -> None:
    await parts.journal.store([step_event(run_id, step) for step in range(1, 6)])
    found = await entries(client, run_id)
    rest = await entries(client, run_id, headers={"Last-Event-ID": str(found[2][0])})
    assert rest == found[3:]
    assert parse((await client.get(f"/v1/runs/{run_id}/events?follow=false&after={found[1][0]}")).text) == found[2:]
    wrong = await client.get(f"/v1/runs/{run_id}/events", headers={"Last-Event-ID": "x"})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "last-event-id")


async def listen(parts: Parts, run_id: str, last_id: int, count: int) -> list[tuple[int, str, dict[str, Any]]]:
    """Follow the stream until `count` entries have arrived."""
    found: list[tuple[int, str, dict[str, Any]]] = []
    stream = event_stream(parts.database, parts.broadcaster, run_id, last_id, True)
    async for text in stream:
        found += parse(text)
        if len(found) >= count:
            break
    await stream.aclose()  # type: ignore[attr-defined]
    return found


async def test_many_listeners_lose_nothing(
    parts: Parts, client: httpx.AsyncClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcaster, "WINDOW", 20)  # so that slow listeners fall behind it
    total = 120
    listeners = [asyncio.create_task(listen(parts, run_id, 0, total)) for _ in range(50)]
    for first in range(1, total + 1, 30):
        await parts.journal.store([step_event(run_id, step) for step in range(first, first + 30)])
        listeners.append(asyncio.create_task(listen(parts, run_id, 0, total)))
        await asyncio.sleep(0)
    expected = await entries(client, run_id)
    for found in await asyncio.gather(*listeners):
        assert found == expected
    assert parts.broadcaster.num_listeners == 0


async def test_a_listener_hears_of_an_event_as_it_comes(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_id: str
) -> None:
    async with looping(parts):
        listener = asyncio.create_task(listen(parts, run_id, 0, 2))
        await eventually(lambda: parts.broadcaster.num_listeners == 1)
        await emit(redis, step_event(run_id, 1))
        await emit(redis, step_event(run_id, 2))
        assert [data["step"] for _, _, data in await asyncio.wait_for(listener, 20)] == [1, 2]


async def test_the_streams_of_a_deleted_run_end(parts: Parts, client: httpx.AsyncClient, run_id: str) -> None:
    await client.post(f"/v1/runs/{run_id}/stop")
    listener = asyncio.create_task(client.get(f"/v1/runs/{run_id}/events"))
    await eventually(lambda: parts.broadcaster.num_listeners == 1)
    await parts.board.refresh_runs(parts.database)
    assert (await client.delete(f"/v1/runs/{run_id}")).status_code == 204
    assert '"state":"stopped"' in (await asyncio.wait_for(listener, 20)).text
    assert (await client.get(f"/v1/runs/{run_id}/events")).status_code == 404


async def test_a_listener_that_claims_to_be_ahead_keeps_no_other_from_the_window() -> None:
    channels = broadcaster.Broadcaster()
    channels.join("a")
    channels.caught_up("a", 10**18)
    entry = broadcaster.Entry(5, "note", "{}")
    channels.publish("a", [entry])
    assert channels.after("a", 4) == [entry]


async def test_a_failed_transaction_tells_nobody(parts: Parts, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    parts.journal.listen(heard.append)

    async def fail(self: Journal, session: Any, event: Any) -> Any:
        raise OSError("disk full")

    monkeypatch.setattr(Journal, "_append", fail)
    with pytest.raises(OSError, match="disk full"):
        await parts.journal.store([RunStateChanged(run_id=run_id, at=time.time(), state="starting")])
    assert heard == []

"""Limits on concurrent requests and on bodies, so that one client cannot take the API from the others."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from services.api.application import make_application
from services.api.container import Parts, make_parts
from services.api.http import security
from services.api.http.security import BYTES_PER_REQUEST, MAX_BODY_BYTES
from services.api.storage.database import open_database
from services.contracts.events import Sample, SamplesTaken, StepFinished
from services.runtime.settings import Settings
from tests.services.api.fakes import client_of, eventually, served

KEY = "correct horse battery"


async def with_key(settings: Settings, redis: Redis, **changes: Any) -> Parts:
    changed = settings.model_copy(update={"api_key": KEY, **changes})
    return make_parts(changed, redis, await open_database(changed))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_event_streams_are_counted_by_client_and_in_all(
    settings: Settings, redis: Redis, run_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "MAX_STREAMS_PER_CLIENT", 3)
    monkeypatch.setattr(security, "MAX_STREAMS", 5)
    parts = await with_key(settings, redis)
    async with served(make_application(parts)) as url, httpx.AsyncClient(base_url=url, headers=bearer(KEY)) as client:
        run = (await client.post("/v1/runs", json=run_body)).headers["location"]
        keys = [(await client.post("/v1/keys", json={"name": name})).json()["key"] for name in ("a", "b")]
        opened: list[httpx.Response] = []

        async def open_stream(key: str) -> httpx.Response:
            request = client.build_request("GET", f"{run}/events", headers=bearer(key))
            answer = await client.send(request, stream=True)
            opened.append(answer)
            return answer

        assert [(await open_stream(keys[0])).status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = opened[-1]
        assert "3 event streams" in json.loads(await refused.aread())["detail"]
        assert refused.headers["retry-after"]
        assert [(await open_stream(keys[1])).status_code for _ in range(3)] == [200, 200, 503]
        assert (await client.get(run, headers=bearer(keys[0]))).status_code == 200
        await opened[0].aclose()
        await eventually(lambda: parts.broadcaster.num_listeners == 4)
        assert (await open_stream(keys[0])).status_code == 200  # a slot that is free again
        for answer in opened:
            await answer.aclose()
    await parts.close()


async def test_requests_under_way_are_counted(
    parts: Parts, run_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "MAX_REQUESTS_PER_CLIENT", 4)
    gate = asyncio.Event()

    async def hang(*_: Any) -> None:
        await gate.wait()

    monkeypatch.setattr(parts.runs, "create", hang)
    async with client_of(parts) as client:
        held = [asyncio.create_task(client.post("/v1/runs", json=run_body)) for _ in range(5)]
        done, _ = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().status_code for task in done] == [429]
        assert (await client.get("/healthz")).status_code == 200
        gate.set()
        await asyncio.wait(held)
        assert (await client.get("/v1/runs")).status_code == 200


async def test_a_large_body_counts_as_several_requests(settings: Settings, redis: Redis) -> None:
    parts = await with_key(settings, redis, rate_limit="10/day")
    async with client_of(parts, headers=bearer(KEY)) as client:
        body = b'"' + b"x" * (4 * BYTES_PER_REQUEST) + b'"'
        headers = {"Content-Type": "application/json"}
        statuses = [(await client.post("/v1/runs", content=body, headers=headers)).status_code for _ in range(3)]
        assert statuses == [422, 422, 429]
    await parts.close()


async def test_the_largest_body_passes_the_default_limit(settings: Settings, redis: Redis) -> None:
    parts = await with_key(settings, redis, rate_limit=Settings().rate_limit)
    async with client_of(parts, headers=bearer(KEY)) as client:
        assert (await client.post("/v1/run-files/check", json={"text": "é" * 100_000})).status_code == 200
    await parts.close()


async def test_a_forged_address_passes_no_limit(settings: Settings, redis: Redis) -> None:
    """Without keys, callers are distinguished by their real address."""
    limited = settings.model_copy(update={"rate_limit": "3/day"})
    parts = make_parts(limited, redis, await open_database(limited))
    async with served(make_application(parts)) as url, httpx.AsyncClient(base_url=url) as client:
        statuses = []
        for number in range(5):
            forged = {
                "X-Forwarded-For": f"10.0.0.{number}",
                "Forwarded": f"for=10.1.0.{number}",
                "X-Real-IP": "9.9.9.9",
            }
            statuses.append((await client.get("/v1/runs", headers=forged)).status_code)
        assert statuses == [200, 200, 200, 429, 429]
    await parts.close()


async def test_the_page_is_counted_too(settings: Settings, redis: Redis) -> None:
    parts = await with_key(settings, redis, rate_limit="3/day")
    async with client_of(parts) as client:
        assert [(await client.get("/")).status_code for _ in range(4)] == [200, 200, 200, 429]
    await parts.close()


def many_fields() -> bytes:
    return json.dumps({f"training_{number:06}": 1 for number in range(47_000)}).encode()


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/runs/x/fork", "/v1/keys", "/v1/run-files/check"])
@pytest.mark.parametrize(
    "body",
    [many_fields(), b'{"name": [' + b"1," * 400_000 + b"1]}", b"[" * 900_000, b'{"a":' * 150_000],
    ids=["fields", "numbers", "lists", "objects"],
)
async def test_a_large_body_of_anything_is_refused_before_it_is_looked_at(
    client: httpx.AsyncClient, path: str, body: bytes
) -> None:
    assert len(body) <= MAX_BODY_BYTES
    began = time.process_time()
    reply = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code in (400, 422)
    assert reply.headers["content-type"] == "application/problem+json"
    assert len(reply.content) < 2000
    assert time.process_time() - began < 2  # explaining every field would take five


@pytest.mark.parametrize("half", ["\\ud800", "\\udfff", "a\\ud83d/b"])
async def test_half_a_character_is_refused_by_name(
    client: httpx.AsyncClient, run_body: dict[str, Any], half: str
) -> None:
    def sent(body: dict[str, Any]) -> bytes:
        return json.dumps(body).replace("HALF", half).encode()

    headers = {"Content-Type": "application/json"}
    for path, body, field in (
        ("/v1/runs", run_body | {"model": {"path": "HALF"}}, "model.path"),
        ("/v1/runs", run_body | {"data": {"train": "HALF"}}, "data.train"),
        ("/v1/runs", run_body | {"name": "HALF"}, "name"),
        ("/v1/runs", run_body | {"HALF": 1}, None),
        ("/v1/runs", run_body | {"preset": "HALF"}, "preset"),
        ("/v1/runs/x/fork", {"changes": {"data": {"train": "HALF"}}}, "changes.data.train"),
        ("/v1/keys", {"name": "HALF"}, "name"),
        ("/v1/run-files/check", {"text": "HALF"}, "text"),
    ):
        reply = await client.post(path, content=sent(body), headers=headers)
        assert (reply.status_code, reply.json()["field"]) == (422, field), (path, reply.text)
        assert "unpaired surrogate" in reply.json()["detail"]
    text = 'name: "' + half + '"\n'  # YAML has the same escapes
    reply = await client.post("/v1/run-files/check", json={"text": text})
    assert "character" in reply.json()["problem"]["detail"]


@pytest.mark.parametrize("half", ["%ED%A0%80", "%FF", "%C3", "%00"])
async def test_half_a_character_in_an_address_is_no_fault(client: httpx.AsyncClient, half: str) -> None:
    for method, path in (
        ("GET", f"/v1/runs/{half}"),
        ("GET", f"/v1/runs/{half}/events"),
        ("GET", f"/v1/runs/{half}/samples"),
        ("POST", f"/v1/runs/{half}/stop"),
        ("DELETE", f"/v1/keys/{half}"),
        ("GET", f"/v1/queues?run_id={half}"),
        ("GET", f"/v1/runs?name={half}"),
        ("GET", f"/v1/runs?cursor={half}"),
        ("GET", f"/{half}"),
        ("GET", f"/page/{half}"),
        ("GET", f"/docs/{half}"),
    ):
        reply = await client.request(method, path)
        assert reply.status_code in (200, 404, 422), (path, reply.status_code)


@pytest.mark.both_databases
async def test_callers_do_not_share_idempotency_keys(
    settings: Settings, redis: Redis, run_body: dict[str, Any]
) -> None:
    parts = await with_key(settings, redis)
    async with client_of(parts) as client:
        owner = bearer(KEY)
        made = [await client.post("/v1/keys", json={"name": n, "role": "operate"}, headers=owner) for n in ("a", "b")]
        callers = [owner, *(bearer(reply.json()["key"]) for reply in made)]
        once = {"Idempotency-Key": "x" * 255}
        ids = [
            (await client.post("/v1/runs", json=run_body | {"name": f"run {index}"}, headers=caller | once)).json()[
                "id"
            ]
            for index, caller in enumerate(callers)
        ]
        assert len(set(ids)) == 3
        again = await client.post("/v1/runs", json=run_body | {"name": "run 1"}, headers=callers[1] | once)
        assert (again.status_code, again.json()["id"]) == (201, ids[1])
        other = await client.post("/v1/runs", json=run_body | {"name": "run 1"}, headers=callers[2] | once)
        assert (other.status_code, other.json()["field"]) == (422, "Idempotency-Key")
        assert (
            await client.post("/v1/runs", json=run_body, headers=owner | {"Idempotency-Key": ""})
        ).status_code == 422
    await parts.close()


async def store_groups(parts: Parts, run_id: str, count: int, text: str) -> None:
    for number in range(count):
        sample = Sample(index=0, text=text, tokens=["é"], reward=1.0, correct=True, route="grpo", advantage=0.5)
        named: dict[str, Any] = {"group_id": f"g-{number}", "question_id": 'q"', "prompt": "p\n", "answer": "\\"}
        await parts.journal.store([SamplesTaken(run_id=run_id, at=1.0, step=1, samples=[sample], **named)])


@pytest.mark.both_databases
async def test_samples_are_sent_in_pieces(
    parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.resources.history.sample_stream.PIECE_CHARACTERS", 7)
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    assert (await client.get(f"/v1/runs/{run_id}/samples")).json() == {"items": []}
    await store_groups(parts, run_id, 2, "ü \U0001f680 " * 5)
    items = (await client.get(f"/v1/runs/{run_id}/samples")).json()["items"]
    assert [item["group_id"] for item in items] == ["g-0", "g-1"]
    for item in items:
        assert (item["question_id"], item["prompt"], item["answer"], item["step"]) == ('q"', "p\n", "\\", 1)
        assert item["samples"][0]["text"] == "ü \U0001f680 " * 5
        assert item["samples"][0]["tokens"] == ["é"]


async def test_who_reads_samples_slowly_holds_up_nobody(
    parts: Parts, run_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More slow clients than the database has connections; the same request from another client is answered
    immediately."""
    async with served(make_application(parts)) as url, httpx.AsyncClient(base_url=url) as client:
        run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
        await store_groups(parts, run_id, 4, "x" * 3_000_000)
        host, port = url.removeprefix("http://").split(":")
        question = f"GET /v1/runs/{run_id}/samples HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        slow = [await asyncio.open_connection(host, int(port), limit=1) for _ in range(20)]
        for _, writer in slow:
            writer.write(question)
        for reader, _ in slow:
            await reader.readexactly(1)
        assert len((await client.get(f"/v1/runs/{run_id}/samples", timeout=30)).json()["items"]) == 4
        for _, writer in slow:
            writer.transport.abort()


async def test_a_group_that_changes_while_it_is_sent_breaks_the_answer(
    parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.api.resources.history.sample_stream import SamplesChangedError, sample_stream
    from services.api.storage import history

    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    await store_groups(parts, run_id, 1, "x" * 100)
    monkeypatch.setattr("services.api.resources.history.sample_stream.PIECE_CHARACTERS", 7)
    async with parts.database.read() as session:
        keys = await history.sample_keys(session, run_id, None, 20)
    pieces = sample_stream(parts.database, run_id, keys)
    for _ in range(4):
        await anext(pieces)
    sample = Sample(index=0, text="y", tokens=[], reward=1.0, correct=True, route="grpo", advantage=0.5)
    named: dict[str, Any] = {"group_id": "g-0", "question_id": "q", "prompt": "p", "answer": ""}
    await parts.journal.store([SamplesTaken(run_id=run_id, at=2.0, step=1, samples=[sample], **named)])
    with pytest.raises(SamplesChangedError):
        await anext(pieces)


@pytest.mark.both_databases
async def test_steps_come_in_pages_that_are_sent_as_they_are_read(
    parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.resources.history.step_stream.PAGE", 3)
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    path = f"/v1/runs/{run_id}/steps"
    assert (await client.get(path)).json() == {"items": [], "next_after": None}
    steps = [
        StepFinished(run_id=run_id, at=step / 3, step=step, metrics={"reward_mean": step / 7}, groups={"fed": step})
        for step in range(1, 8)
    ]
    await parts.journal.store(steps)
    for after, limit in ((0, 7), (0, 6), (0, 3), (0, 4), (0, 1), (2, 1), (2, 100), (7, 2), (9, 2)):
        answer = (await client.get(path, params={"after": after, "limit": limit})).json()
        due = [step for step in steps if step.step > after]
        assert [item["step"] for item in answer["items"]] == [step.step for step in due[:limit]]
        assert answer["next_after"] == (due[limit - 1].step if len(due) > limit else None)
        for item, step in zip(answer["items"], due, strict=False):
            assert item == {"step": step.step, "at": step.at, "metrics": step.metrics, "groups": step.groups}


async def test_numbers_that_are_none_are_null(
    parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any]
) -> None:
    nan, infinite = float("nan"), float("inf")
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    metrics = {'a "NaN" b': nan, "c\\": -infinite, "d": 1.5, "e": infinite}
    sample = Sample(
        index=0, text="NaN, -Infinity", tokens=["NaN"], reward=nan, correct=True, route="grpo", advantage=0.5
    )
    sample = msgspec.structs.replace(sample, logprobs=[-1.0, -infinite], teacher_entropy=[nan], divergence=[0.5])
    named: dict[str, Any] = {"group_id": "g", "question_id": "q", "prompt": "p", "answer": "NaN"}
    await parts.journal.store(
        [
            StepFinished(run_id=run_id, at=1.0, step=1, metrics=metrics, groups={}),
            SamplesTaken(run_id=run_id, at=1.0, step=1, samples=[sample], **named),
        ]
    )
    [step] = (await client.get(f"/v1/runs/{run_id}/steps")).json()["items"]
    assert step["metrics"] == {'a "NaN" b': None, "c\\": None, "d": 1.5, "e": None}
    [group] = (await client.get(f"/v1/runs/{run_id}/samples")).json()["items"]
    shown = group["samples"][0]
    assert (shown["text"], shown["tokens"], shown["reward"]) == ("NaN, -Infinity", ["NaN"], None)
    assert (shown["logprobs"], shown["teacher_entropy"], shown["divergence"]) == ([-1.0, None], [None], [0.5])

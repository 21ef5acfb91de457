"""Creating, listing and deleting runs over REST."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from services.api.container import Parts, make_parts
from services.api.resources.runs import rows
from services.api.storage import history, runs
from services.api.storage.database import open_database
from services.contracts import streams
from services.contracts.events import StepFinished
from services.runtime.settings import Settings
from tests.faults import Away
from tests.services.api.fakes import client_of


def changed(body: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy of `body` with the field at `place` (dots) set."""
    out = copy.deepcopy(body)
    *sections, name = place.split(".")
    section = out
    for part in sections:
        section = section.setdefault(part, {})
    section[name] = value
    return out


@pytest.mark.both_databases
async def test_a_run_is_stored_with_every_default(client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    reply = await client.post("/v1/runs", json=run_body)
    assert reply.status_code == 201
    run = (await client.get(reply.headers["location"])).json()
    assert run == reply.json()
    assert (run["state"], run["num_steps"], run["objective"]) == ("queued", 3, "srpo")
    assert run["config"]["rollout"]["group_size"] == 8
    assert run["config"]["optimizer"]["betas"] == [0.9, 0.999]


async def test_an_objective_with_another_ones_settings_is_told(
    client: httpx.AsyncClient, run_body: dict[str, Any]
) -> None:
    body = changed(run_body, "objective", {"name": "grpo"})
    body.pop("optimizer", None)
    made = (await client.post("/v1/runs", json=body)).json()
    [told] = made["notices"]
    assert "objective.name is grpo" in told
    assert "optimizer.learning_rate 5e-06 (paper-grpo: 1e-06)" in told
    assert "Set `preset: paper-grpo`" in told
    assert (await client.get(f"/v1/runs/{made['id']}")).json()["notices"] == [told]
    verdict = (await client.post("/v1/run-files/check", json={"text": json.dumps(body)})).json()
    assert verdict["notices"] == [told]
    preset = changed(body | {"preset": "paper-grpo"}, "training.prompts_per_minibatch", None)
    assert (await client.post("/v1/runs", json=preset)).json()["notices"] == []


async def test_a_preset_gives_its_values_and_fields_win(client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    body = changed(run_body | {"preset": "paper-grpo"}, "optimizer.warmup_steps", 3)
    config = (await client.post("/v1/runs", json=body)).json()["config"]
    assert (config["objective"]["name"], config["optimizer"]["learning_rate"]) == ("grpo", 1e-6)
    assert config["optimizer"]["warmup_steps"] == 3


async def test_rows_that_cannot_be_used_are_refused_until_they_are_corrected(
    client: httpx.AsyncClient, run_body: dict[str, Any], tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    good = data.read_text()
    data.write_text(good + "{oops\n" + good.replace("mcq", "MCQ"))
    for _ in range(2):
        reply = await client.post("/v1/runs", json=run_body)
        problem = reply.json()
        assert (reply.status_code, problem["field"]) == (422, "data.train")
        first, second, third = problem["detail"].splitlines()
        assert first == "data.train: 2 of 3 rows are invalid."
        assert second.startswith(f"{data}, line 2: not valid JSON")
        assert third.startswith(f"{data}, line 3: Question 2: kind is 'MCQ'. Write 'mcq'.")
    assert (await client.get("/v1/runs")).json()["items"] == []
    body = changed(run_body, "data.max_train_questions", 1)
    assert (await client.post("/v1/runs", json=body)).status_code == 201, "the learner reads one row"
    data.write_text(good)
    assert (await client.post("/v1/runs", json=run_body)).status_code == 201


async def test_a_list_of_sources_is_checked_source_by_source(
    client: httpx.AsyncClient, run_body: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "math.csv").write_text("question,solution\n1 + 1?,It is #### 2\n2 + 2?,It is 4\n")
    turns = [{"role": "user", "content": "Coal?"}, {"role": "assistant", "content": "3"}]
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"kind": "exact", "messages": turns, "answer": "3"}))
    mapped = {"prompt": "question", "answer": "solution|after:####"}
    sources = [
        {"path": run_body["data"]["train"], "name": "mcq", "weight": 2},
        {"path": str(tmp_path / "math.csv"), "kind": "exact", "columns": mapped},
        {"path": str(chats)},
    ]
    body = changed(run_body, "data.train", sources)

    async def refused(field: str) -> str:
        reply = await client.post("/v1/runs", json=body)
        assert (reply.status_code, reply.json()["field"]) == (422, field), reply.text
        return str(reply.json()["detail"])

    detail = await refused("data.train.1")
    assert f"{tmp_path}/math.csv, line 3: columns.answer (solution|after:####): after: '####' does not occur" in detail
    sources[1]["invalid_rows"] = "skip"
    assert f"{chats}, line 1: messages: the last message is from 'assistant'" in await refused("data.train.2")
    chats.write_text(json.dumps({"kind": "exact", "messages": turns[:1], "answer": "3"}))
    sources[0]["weight"] = 0
    assert "data.train.0.weight is 0" in await refused("data.train.0.weight")
    sources[0]["weight"] = 2
    reply = await client.post("/v1/runs", json=body)
    assert reply.status_code == 201, reply.text
    stored = reply.json()["config"]["data"]["train"]
    assert [(source["name"], source["weight"]) for source in stored] == [("mcq", 2), ("math", 1), ("chats", 1)]
    events = (await client.get(f"/v1/runs/{reply.json()['id']}/events?follow=false")).text
    assert "data.train.1: 1 of 2 rows" in events


@pytest.mark.parametrize(("seconds", "grace"), [(-1.0, 60.0), (0.0, 0.0)])
async def test_rows_that_take_too_long_are_left_to_the_learner_and_the_run_says_so(
    client: httpx.AsyncClient,
    run_body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    grace: float,
) -> None:
    monkeypatch.setattr(rows, "SECONDS", seconds)
    monkeypatch.setattr(rows, "GRACE_SECONDS", grace)
    run = (await client.post("/v1/runs", json=run_body)).json()
    events = (await client.get(f"/v1/runs/{run['id']}/events?follow=false")).text
    assert f"data.train: the first 0 rows of {run_body['data']['train']} were checked" in events


@pytest.mark.parametrize(
    ("place", "value", "field", "words"),
    [
        ("training.steps", 0, "training.steps", "training.steps is 0"),
        ("training.steps", 2**70, "training.steps", "less than or equal to 9007199254740991"),
        ("training.stepz", 1, "training.stepz", "training.stepz is not a field"),
        ("rollout.top_p", "much", "rollout.top_p", "'much'"),
        ("preset", "paper-x", "preset", "paper-x"),
        ("preset", {}, "preset", "does not exist"),
        ("rollout.group_size", 1, "rollout.group_size", "need siblings"),
        ("model.path", "/no/such/model", "model.path", "outside the folders"),
        ("model.path", "no-such-model", "model.path", "no such folder"),
        ("model.path", "deploy/nothing", "model.path", "no such folder"),
        ("model.path", "", "model.path", "not a path"),
        ("data.train", "/no/such/file.jsonl", "data.train", "outside the folders"),
        ("data.train", "hub:", "data.train", "hub:"),
        ("data.validation", "nothing.jsonl", "data.validation", "no such file"),
        ("model.trust_remote_code", True, "model.trust_remote_code", "does not run models' own code"),
    ],
)
async def test_a_wrong_run_is_refused_with_field_and_remedy(
    client: httpx.AsyncClient, run_body: dict[str, Any], place: str, value: Any, field: str | None, words: str
) -> None:
    reply = await client.post("/v1/runs", json=changed(run_body, place, value))
    problem = reply.json()
    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")
    assert problem["field"] == field
    assert words in problem["detail"]
    assert problem["remedy"]
    assert problem["status"] == 422
    assert (await client.get("/v1/runs")).json()["items"] == []


async def test_a_folder_without_a_model_is_refused(
    client: httpx.AsyncClient, run_body: dict[str, Any], tmp_path: Path
) -> None:
    reply = await client.post("/v1/runs", json=changed(run_body, "model.path", str(tmp_path)))
    assert (reply.status_code, reply.json()["field"]) == (422, "model.path")
    assert "config.json" in reply.json()["detail"]


async def test_hub_names_are_taken(client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    body = changed(changed(run_body, "model.path", "someone/some-model"), "data.train", "hub:someone/data:train")
    assert (await client.post("/v1/runs", json=body)).status_code == 201


async def test_remote_code_where_the_operator_allows_it(
    settings: Settings, redis: Redis, run_body: dict[str, Any]
) -> None:
    allowing = settings.model_copy(update={"allow_remote_code": True})
    parts = make_parts(allowing, redis, await open_database(allowing))
    async with client_of(parts) as client:
        reply = await client.post("/v1/runs", json=changed(run_body, "model.trust_remote_code", True))
    assert reply.status_code == 201
    await parts.close()


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"null", b"\xff\xfe", b"[" * 10000])
async def test_bodies_that_are_no_configuration(client: httpx.AsyncClient, content: bytes) -> None:
    reply = await client.post("/v1/runs", content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code in (400, 422)
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.both_databases
async def test_idempotency_key(client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "once"}
    replies = await asyncio.gather(*(client.post("/v1/runs", json=run_body, headers=headers) for _ in range(8)))
    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.json()["id"] for reply in replies}) == 1
    other = await client.post("/v1/runs", json=run_body | {"name": "other"}, headers=headers)
    assert (other.status_code, other.json()["field"]) == (422, "Idempotency-Key")
    assert len((await client.get("/v1/runs")).json()["items"]) == 1


async def test_idempotency_key_of_a_run_whose_inputs_are_gone_by_now(
    client: httpx.AsyncClient, run_body: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "again"}
    first = await client.post("/v1/runs", json=run_body, headers=headers)
    Path(run_body["data"]["train"]).unlink()  # noqa: ASYNC240
    again = await client.post("/v1/runs", json=run_body, headers=headers)
    assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])


@pytest.mark.both_databases
@pytest.mark.parametrize("sort", ["created_at", "-created_at", "name", "-name", "state", "-step"])
async def test_pages_give_every_run_once_in_order(
    client: httpx.AsyncClient, run_body: dict[str, Any], sort: str
) -> None:
    made = [
        (await client.post("/v1/runs", json=run_body | {"name": name})).json() for name in ("b", "a", "b", "c", "a")
    ]
    seen: list[dict[str, Any]] = []
    cursor = None
    while True:
        params: dict[str, Any] = {"sort": sort, "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/v1/runs", params=params)).json()
        seen += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(run["id"] for run in seen) == sorted(run["id"] for run in made)
    values = [run[sort.lstrip("-")] for run in seen]
    assert values == sorted(values, reverse=sort.startswith("-"))


@pytest.mark.both_databases
async def test_filters_and_wrong_cursors(client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    first = (await client.post("/v1/runs", json=run_body | {"name": "Alpha one"})).json()
    await client.post("/v1/runs", json=run_body | {"name": "beta"})
    await client.post(f"/v1/runs/{first['id']}/stop")

    async def names(**params: Any) -> list[str]:
        return [run["name"] for run in (await client.get("/v1/runs", params=params)).json()["items"]]

    assert await names(state="stopped") == ["Alpha one"]
    assert sorted(await names(state=["stopped", "queued"])) == ["Alpha one", "beta"]
    assert await names(name="ALPHA") == ["Alpha one"]
    assert await names(name="%") == []
    page = (await client.get("/v1/runs", params={"limit": 1})).json()
    for params in ({"cursor": "@@@"}, {"cursor": "AAAA"}, {"cursor": page["next_cursor"], "sort": "name"}):
        reply = await client.get("/v1/runs", params=params)
        assert (reply.status_code, reply.json()["field"]) == (422, "cursor")
    assert (await client.get("/v1/runs", params={"sort": "colour"})).json()["field"] == "sort"


@pytest.mark.both_databases
async def test_names_tags_and_notes_change_in_any_state_and_tags_find_runs(
    client: httpx.AsyncClient, run_body: dict[str, Any]
) -> None:
    ids = [(await client.post("/v1/runs?priority=3", json=run_body)).json()["id"] for _ in range(2)]
    await client.post(f"/v1/runs/{ids[0]}/stop")
    reply = await client.patch(f"/v1/runs/{ids[0]}", json={"name": "base", "tags": ["b_1", "a", "a"], "note": "Why."})
    assert {name: reply.json()[name] for name in ("name", "tags", "note", "priority", "state")} == {
        "name": "base",
        "tags": ["a", "b_1"],
        "note": "Why.",
        "priority": 3,
        "state": "stopped",
    }
    await client.patch(f"/v1/runs/{ids[1]}", json={"tags": ["bx1", "a"]})
    found = {
        query: {run["id"] for run in (await client.get(f"/v1/runs?{query}")).json()["items"]}
        for query in ("tag=a", "tag=b_1", "tag=a&tag=bx1", "tag=b", "tag=a&without_tag=bx1", "without_tag=a")
    }
    assert found == {
        "tag=a": set(ids),
        "tag=b_1": {ids[0]},
        "tag=a&tag=bx1": {ids[1]},
        "tag=b": set(),
        "tag=a&without_tag=bx1": {ids[0]},
        "without_tag=a": set(),
    }
    await client.patch(f"/v1/runs/{ids[0]}", json={"tags": []})
    assert (await client.get(f"/v1/runs/{ids[0]}")).json()["tags"] == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"priority": 101}, "priority"),
        ({"tags": ['a"b']}, "tags"),
        ({"tags": ["x"] * 21}, "tags"),
        ({"state": "x"}, "state"),
    ],
)
async def test_a_wrong_change_is_refused_with_its_field(
    client: httpx.AsyncClient, run_body: dict[str, Any], changes: dict[str, Any], field: str
) -> None:
    run = (await client.post("/v1/runs", json=run_body)).json()
    reply = await client.patch(f"/v1/runs/{run['id']}", json=changes)
    assert reply.status_code == 422
    assert reply.json()["field"].startswith(field)
    assert (await client.get(f"/v1/runs/{run['id']}")).json() == run


async def test_runs_are_found_by_their_configuration(client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    slow = {"name": "5", "optimizer": {"learning_rate": 1e-6}, "data": run_body["data"] | {"shuffle": False}}
    await client.post("/v1/runs", json=run_body | slow)
    await client.post("/v1/runs", json=run_body | {"name": "fast", "optimizer": {"learning_rate": 2e-6}})

    async def names(*config: str) -> list[str]:
        reply = await client.get("/v1/runs", params={"config": config, "sort": "name"})
        assert reply.status_code == 200, reply.text
        return [run["name"] for run in reply.json()["items"]]

    assert await names("optimizer.learning_rate=1e-6") == ["5"]
    assert await names("optimizer.learning_rate=0.000002") == ["fast"]
    assert await names("data.shuffle=true") == ["fast"]
    assert await names("objective.name=srpo") == ["5", "fast"]
    assert await names("objective.name=srpo", "data.shuffle=false") == ["5"]
    assert await names("probe=null") == ["5", "fast"]
    assert await names("name=5") == [], "a number is not a text"
    assert await names('name="5"') == ["5"]
    assert await names("no.such.field=1") == []
    assert await names(f"training.steps={10**30}") == []
    for wrong in ("learning_rate", "a'b=1", "=1", "training.steps=[1]", r'name="\u0000"', r'name="\ud800"'):
        reply = await client.get("/v1/runs", params={"config": wrong})
        assert (reply.status_code, reply.json()["field"]) == (422, "config")


async def test_a_run_whose_configuration_this_version_does_not_accept_is_shown(
    parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any]
) -> None:
    """An earlier version may have accepted fields that have been removed since."""
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    async with parts.database.write() as session:
        run = await runs.get_run(session, run_id)
        run.config = {**run.config, "sampler": {"warmth": 1}}
    assert [item["id"] for item in (await client.get("/v1/runs")).json()["items"]] == [run_id]
    assert (await client.get(f"/v1/runs/{run_id}")).json()["config"]["sampler"] == {"warmth": 1}


@pytest.mark.both_databases
async def test_deleting_a_run_removes_files_and_keys(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, run_body: dict[str, Any]
) -> None:
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    other = (await client.post("/v1/runs", json=run_body)).json()["id"]
    for name in (run_id, other):
        (parts.settings.runs_folder / name / "weights").mkdir(parents=True)
        await redis.xadd(streams.prompts(name), {"m": b"x"})
    await client.post(f"/v1/runs/{run_id}/stop")
    assert (await client.delete(f"/v1/runs/{run_id}")).status_code == 204
    assert [path.name for path in parts.settings.runs_folder.iterdir()] == [other]
    assert await redis.keys("turnout:{*") == [streams.prompts(other).encode()]
    assert (await client.delete(f"/v1/runs/{run_id}")).status_code == 404


@contextmanager
def no_queue_server(parts: Parts) -> Iterator[None]:
    with patch.object(parts.runs, "redis", Away()):
        yield


@contextmanager
def no_commit(parts: Parts) -> Iterator[None]:
    def fail(_: object) -> None:
        raise OperationalError("COMMIT", {}, Exception("disk is full"))

    event.listen(parts.database.engine.sync_engine, "commit", fail)
    yield
    event.remove(parts.database.engine.sync_engine, "commit", fail)


@pytest.mark.parametrize("fault", [no_queue_server, no_commit])
async def test_a_deletion_that_fails_loses_nothing(
    parts: Parts,
    client: httpx.AsyncClient,
    run_body: dict[str, Any],
    fault: Callable[[Parts], AbstractContextManager[None]],
) -> None:
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    await client.post(f"/v1/runs/{run_id}/stop")
    checkpoints = parts.settings.runs_folder / run_id / "checkpoints"
    checkpoints.mkdir(parents=True)
    with fault(parts):
        assert (await client.delete(f"/v1/runs/{run_id}")).status_code == 503
    assert (await client.get(f"/v1/runs/{run_id}")).status_code == 200
    assert [path.name for path in checkpoints.parent.iterdir()] == ["checkpoints"]


async def test_a_deletion_cut_short_by_the_apis_end_is_finished_at_its_next_start(
    settings: Settings, redis: Redis, run_body: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"weights_folder": tmp_path / "memory"})
    parts = make_parts(settings, redis, await open_database(settings))
    async with client_of(parts) as client:
        run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
        await client.post(f"/v1/runs/{run_id}/stop")
        folders = [settings.runs_folder / run_id / "checkpoints", settings.weights_of(run_id)]
        for folder in folders:
            folder.mkdir(parents=True)
        with monkeypatch.context() as ends:
            ends.setattr(parts.runs, "settle_folder", asyncio.CancelledError)
            await client.delete(f"/v1/runs/{run_id}")
        assert (await client.get(f"/v1/runs/{run_id}")).status_code == 404
        await parts.runs.settle()
    assert not [folder for folder in folders if folder.exists()]
    await parts.close()


@pytest.mark.both_databases
async def test_lists_have_the_newest_metrics_of_every_run(
    parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Including runs that ended so long ago that they are not on the metrics board."""
    monkeypatch.setattr("services.api.live.board.MAX_ENDED_RUNS", 0)
    run_id, other = [(await client.post("/v1/runs", json=run_body)).json()["id"] for _ in range(2)]
    for step in (1, 2):
        await parts.journal.store([StepFinished(run_id=run_id, at=float(step), step=step, metrics={"loss": step / 4})])
    await client.post(f"/v1/runs/{run_id}/stop")
    await parts.board.refresh_runs(parts.database)
    listed = {run["id"]: run["metrics"] for run in (await client.get("/v1/runs")).json()["items"]}
    assert listed == {run_id: {"loss": 0.5}, other: {}}


@pytest.mark.both_databases
async def test_characters_that_a_database_does_not_keep_are_no_outage(client: httpx.AsyncClient) -> None:
    for path in ("/v1/runs?name=a%00b", "/v1/runs/a%00b", "/v1/runs/a%00b/events"):
        assert (await client.get(path)).status_code in (200, 404, 422), path


async def test_a_list_has_the_fields_and_metrics_that_it_is_asked_for(
    client: httpx.AsyncClient, parts: Parts, run_body: dict[str, Any]
) -> None:
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    async with parts.database.write() as session:
        metrics = {"reward_mean": 0.5, "accuracy": 0.25}
        await history.store(session, StepFinished(run_id=run_id, step=1, at=1.0, metrics=metrics, groups={}))
        (await runs.get_run(session, run_id)).step = 1
    asked = "field=objective.name&field=data.validation&field=name.x&field=nothing&metric=accuracy&metric=none"
    [run] = (await client.get(f"/v1/runs?{asked}")).json()["items"]
    assert run["fields"] == {"objective.name": "srpo", "data.validation": None}
    assert run["metrics"] == {"accuracy": 0.25}
    [run] = (await client.get("/v1/runs")).json()["items"]
    assert (run["fields"], run["metrics"]) == ({}, metrics)


async def test_a_number_too_long_to_be_written_is_named(client: httpx.AsyncClient) -> None:
    text = "name: x\nmodel: {path: m}\ndata: {train: t}\ntraining: {steps: 0x" + "F" * 5000 + "}"
    problem = (await client.post("/v1/run-files/check", json={"text": text})).json()["problem"]
    assert problem["field"] == "training.steps"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/runs/none", 404),
        ("GET", "/v1/runs/none/steps", 404),
        ("GET", "/v1/runs/none/events", 404),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/runs", 405),
        ("GET", "/v1/runs?limit=0", 422),
        ("GET", "/v1/runs/..%2F..%2Fetc", 404),
    ],
)
async def test_errors_are_problem_documents(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    reply = await client.request(method, path)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
    assert {"type", "title", "status", "detail"} <= reply.json().keys()


async def test_405_names_every_method_of_the_path(client: httpx.AsyncClient) -> None:
    assert (await client.put("/v1/runs")).headers["allow"] == "GET, POST"
    assert (await client.put("/v1/runs/x")).headers["allow"] == "DELETE, GET, PATCH"


async def test_redis_away_is_a_503(parts: Parts, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = Redis(host="127.0.0.1", port=1, retry=None)  # type: ignore[arg-type]
    parts.redis = dead
    reply = await client.get("/v1/services")
    assert (reply.status_code, reply.json()["title"]) == (503, "Unavailable")
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["faults"]) == (503, ["redis"])
    assert (await client.get("/healthz")).status_code == 200
    await dead.aclose()


async def test_a_queue_server_that_is_away_is_told_soon(
    settings: Settings, redis: Redis, run_body: dict[str, Any]
) -> None:
    """Requests retry a few times and then answer; the loops retry for longer. A stop with a checkpoint does not need
    Redis."""
    tries = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        parts = make_parts(settings.model_copy(update={"redis_url": url}), redis, await open_database(settings))
        async with client_of(parts) as client:
            for method, path in (("GET", "/v1/services"), ("GET", "/readyz"), ("POST", "/v1/runs/x/stop?now=true")):
                tries = 0
                assert (await client.request(method, path)).status_code == 503
                assert tries <= 4
            run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
            assert (await client.post(f"/v1/runs/{run_id}/stop")).json()["state"] == "stopped"
        await parts.close()

"""Evaluations over REST: whose weights, which server, what they come to, and what a restart leaves of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.api.container import Parts, make_parts
from services.api.storage.database import open_database
from services.api.storage.evaluations import get_evaluation
from services.contracts import codec, streams
from services.contracts.arrays import LogProbs, TokenIds
from services.contracts.messages import CompletedGroup, PromptTask, Rollout, ScoredGroup, Verdict, VersionSpan
from services.runtime.weights.store import WeightStore, verify
from tests.services.api.fakes import FakeInstance, client_of
from tests.services.api.test_forks import write_checkpoint

NUM_QUESTIONS = 5


@pytest.fixture
def body(tmp_path: Path, run_body: dict[str, Any]) -> dict[str, Any]:
    """A valid evaluation of a model on two sets with different settings."""
    data = tmp_path / "hard.jsonl"
    rows = [{"id": f"q{n}", "kind": "mcq", "prompt": f"Which? {n}", "answer": "A"} for n in range(NUM_QUESTIONS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [
        {"path": str(data), "num_samples": 4},
        {"path": str(data), "name": "greedy", "num_samples": 1, "temperature": 0, "limit": 2},
    ]
    return {"model": run_body["model"], "data": {"validation": sets}}


@pytest.fixture
async def server(redis: Redis) -> FakeInstance:
    fake = FakeInstance(redis, "rollout", "rollout-0")
    await fake.publish()
    return fake


async def create(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    reply = await client.post("/v1/evaluations", json=body)
    assert reply.status_code == 201, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def shown(client: httpx.AsyncClient, evaluation_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"/v1/evaluations/{evaluation_id}")).json()
    return found


async def fed(redis: Redis, evaluation_id: str) -> list[PromptTask]:
    entries: Any = await redis.xrange(streams.prompts(evaluation_id))
    return [codec.decode(fields[b"m"], PromptTask) for _, fields in entries]


async def judge(redis: Redis, task: PromptTask, num_correct: int, version: int = 0, num_faulty: int = 0) -> None:
    """Do what rollout server and verifier do for one question, but for its prompt, which stays on its stream."""
    await redis.xadd(streams.evaluated(task.run_id), {"m": judged(task, num_correct, version, num_faulty)})


def judged(task: PromptTask, num_correct: int, version: int = 0, num_faulty: int = 0) -> bytes:
    """The judged group of a question, encoded."""
    size = task.sampling.num_samples
    spans = [VersionSpan(version, 0, 2)]
    rollout = Rollout(
        status="ok", text="A", token_ids=TokenIds([1, 2]), logprobs=LogProbs([-1.0, -1.0]), weight_versions=spans
    )
    group = CompletedGroup(
        task=task, prompt_token_ids=TokenIds([1]), rollouts=[rollout] * size, server="rollout-0", seconds=1.0
    )
    verdicts = [Verdict(status="ok", reward=float(n < num_correct), correct=n < num_correct) for n in range(size)]
    verdicts[size - num_faulty :] = [Verdict(status="infrastructure_fault", fault="no sandbox")] * num_faulty
    return codec.encode(ScoredGroup(group=group, verdicts=verdicts, verifier="verifier-0"))


async def look(parts: Parts) -> None:
    await parts.scheduler.step()
    await parts.examiner.step()


@pytest.mark.both_databases
async def test_an_evaluation_is_sampled_set_by_set_and_its_results_have_intervals(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, server: FakeInstance, body: dict[str, Any]
) -> None:
    made = await create(client, body)
    await look(parts)
    assert await server.assignment() == made["id"]
    assert await redis.smembers(streams.RUNS) == {made["id"].encode()}
    tasks = await fed(redis, made["id"])
    sampled = [(task.sampling.num_samples, task.sampling.temperature, task.purpose) for task in tasks]
    assert sampled == [(4, 0.6, "evaluation")] * NUM_QUESTIONS + [(1, 0.0, "evaluation")] * 2
    for task, num_correct in zip(tasks, (4, 2, 1, 0, 0, 1, 0), strict=True):
        await judge(redis, task, num_correct, num_faulty=int(task.question.id == "q2" and num_correct == 1))
    await look(parts)
    ended = await shown(client, made["id"])
    assert (ended["state"], ended["num_done"], ended["num_questions"]) == ("succeeded", 7, 7)
    hard, greedy = ended["results"]
    assert hard["set"] == "hard"
    assert hard["accuracy"]["value"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 0 + 0) / 5)
    assert 0 <= hard["accuracy"]["low"] < hard["accuracy"]["value"] < hard["accuracy"]["high"] <= 1
    shares = {item["k"]: item["share"]["value"] for item in hard["pass_at_k"]}
    assert shares == pytest.approx({1: 11 / 30, 2: (1 + 5 / 6 + 2 / 3) / 5, 4: 2 / 4}), "one question lost a sample"
    assert (hard["num_faults"], hard["num_solved"]) == (1, 2)
    assert greedy["accuracy"]["value"] == 0.5
    await parts.scheduler.step()
    assert await server.assignment() is None
    url = f"/v1/evaluations/{made['id']}/samples"
    samples = (await client.get(url, params={"set": "hard", "number": 1})).json()
    assert (samples["prompt"], samples["answer"]) == ("Which? 1", "A")
    assert [(item["index"], item["correct"], item["counts"]) for item in samples["samples"]] == [
        (0, True, True),
        (1, True, True),
        (2, False, True),
        (3, False, True),
    ]
    missing = await client.get(url, params={"set": "greedy", "number": 4})
    assert (missing.status_code, missing.json()["field"]) == (404, "number")
    assert (await client.delete(f"/v1/evaluations/{made['id']}")).status_code == 204
    assert (await client.get(url, params={"set": "hard", "number": 1})).status_code == 404


async def test_equal_evaluations_have_equal_seeds_and_the_settings_reach_the_sampler(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, server: FakeInstance, body: dict[str, Any]
) -> None:
    seeds = []
    settings = {"evaluation": {"min_p": 0.05, "presence_penalty": 1.5}}
    for request in (body, body, {**body, "seed": 1}):
        made = await create(client, request | settings)
        await look(parts)
        tasks = await fed(redis, made["id"])
        seeds.append([task.sampling.seed for task in tasks])
        assert {(task.sampling.min_p, task.sampling.presence_penalty) for task in tasks} == {(0.05, 1.5)}
        await client.post(f"/v1/evaluations/{made['id']}/cancel")
        await parts.scheduler.step()
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 14, "each question of each set has its own, which depends on the seed"


async def test_a_restarted_api_continues_with_the_questions_that_are_left(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, server: FakeInstance, body: dict[str, Any]
) -> None:
    made = await create(client, body)
    await look(parts)
    tasks = await fed(redis, made["id"])
    for task in tasks[:3]:
        await judge(redis, task, 1)
    await look(parts)
    partial = await shown(client, made["id"])
    assert (partial["num_done"], partial["results"][0]["num_questions"]) == (3, 3)
    await judge(redis, tasks[3], 1)
    # killed after it took the group, and before it stored it
    await parts.examiner.queue.receive([streams.evaluated(made["id"])], ScoredGroup)
    again = make_parts(parts.settings, redis, await open_database(parts.settings))
    for task in tasks[2:]:
        if task is not tasks[3]:
            await judge(redis, task, 1)  # one of them is done already
    await look(again)
    await look(again)
    assert len(await fed(redis, made["id"])) == len(tasks), "nothing is fed twice"
    async with client_of(again) as client:
        ended = await shown(client, made["id"])
        listed = (await client.get(f"/v1/evaluations/{made['id']}/questions?limit=4")).json()
        rest = (await client.get(f"/v1/evaluations/{made['id']}/questions?cursor={listed['next_cursor']}")).json()
    assert (ended["state"], ended["num_done"]) == ("succeeded", 7)
    names = [(item["set"], item["question_id"]) for item in [*listed["items"], *rest["items"]]]
    assert names == [("hard", f"q{n}") for n in range(5)] + [("greedy", "q0"), ("greedy", "q1")]
    await again.refresh.step()
    assert again.board.evaluations == {"succeeded": 1}
    assert parts.board.evaluated_questions + again.board.evaluated_questions == 7, "none counts twice"
    await again.close()


async def test_samples_of_other_weights_do_not_count(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, server: FakeInstance, body: dict[str, Any]
) -> None:
    made = await create(client, {**body, "data": {"validation": body["data"]["validation"][:1]}})
    await look(parts)
    tasks = await fed(redis, made["id"])
    for task in tasks:
        await judge(redis, task, 4, version=3 if task.sequence == 0 else 0)
    await look(parts)
    (result,) = (await shown(client, made["id"]))["results"]
    assert (result["num_questions"], result["num_faults"]) == (4, 4)


async def test_an_evaluation_gives_way_to_a_run_and_continues_on_the_next_idle_server(
    parts: Parts,
    client: httpx.AsyncClient,
    redis: Redis,
    server: FakeInstance,
    learner: FakeInstance,
    body: dict[str, Any],
    run_body: dict[str, Any],
) -> None:
    made = await create(client, body)
    await look(parts)
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    await look(parts)
    assert await server.assignment() == run_id
    waiting = await shown(client, made["id"])
    assert waiting["state"] == "queued"
    await look(parts)
    waiting = await shown(client, made["id"])
    assert waiting["reason"] == f"Waits for an idle rollout server; run {run_id} uses the only one."
    second = FakeInstance(redis, "rollout", "rollout-1")
    await second.publish()
    await look(parts)
    assert await second.assignment() == made["id"]


async def test_the_evaluation_with_the_highest_priority_starts_first(
    parts: Parts, client: httpx.AsyncClient, server: FakeInstance, body: dict[str, Any]
) -> None:
    first, second, third = [await create(client, body) for _ in range(3)]
    changed = await client.patch(f"/v1/evaluations/{second['id']}", json={"priority": 5, "name": "urgent"})
    assert (changed.json()["priority"], changed.json()["name"]) == (5, "urgent"), changed.text
    await look(parts)
    assert await server.assignment() == second["id"]
    reply = await client.post("/v1/evaluations?priority=9", json=body)
    await look(parts)
    assert await server.assignment() == second["id"], "none in progress is interrupted"
    await client.post(f"/v1/evaluations/{second['id']}/cancel")
    await look(parts)
    await look(parts)
    assert await server.assignment() == reply.json()["id"]
    assert (await shown(client, third["id"]))["reason"].startswith("Waits for an idle rollout server, behind 1 other")
    wrong = await client.patch(f"/v1/evaluations/{first['id']}", json={"priority": 101})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "priority")


async def test_a_run_is_evaluated_with_other_arguments_of_the_template(
    parts: Parts, client: httpx.AsyncClient, body: dict[str, Any], run_body: dict[str, Any]
) -> None:
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    write_checkpoint(parts.settings.run_folder(run_id), 2)
    asked = {"chat_template_kwargs": {"enable_thinking": True}, "thinking": {}}
    made = await create(client, {"run": run_id, "model": asked, "data": body["data"]})
    model = made["config"]["model"]
    assert model["chat_template_kwargs"]["enable_thinking"] is True
    assert model["thinking"]["close"] == "</think>"
    assert Path(model["path"]).name == "hf", "of the run's checkpoint"
    refused = await client.post("/v1/evaluations", json={"run": run_id, "model": body["model"], "data": body["data"]})
    assert (refused.status_code, refused.json()["field"]) == (422, "run")
    assert "only chat_template_kwargs and thinking go with a run" in refused.json()["detail"]


async def test_a_cancelled_evaluation_leaves_its_server_and_can_be_deleted(
    parts: Parts, client: httpx.AsyncClient, server: FakeInstance, body: dict[str, Any]
) -> None:
    reply = await create(client, body)
    await parts.scheduler.step()
    await client.post(f"/v1/evaluations/{reply['id']}/cancel")
    await parts.scheduler.step()
    assert await server.assignment() is None
    cancelled = await shown(client, reply["id"])
    assert (cancelled["state"], cancelled["reason"]) == ("cancelled", "cancelled by request")
    assert (await client.post(f"/v1/evaluations/{reply['id']}/cancel")).status_code == 200
    assert (await client.delete(f"/v1/evaluations/{reply['id']}")).status_code == 204
    assert (await client.delete(f"/v1/evaluations/{reply['id']}")).status_code == 404


async def test_a_running_evaluation_is_not_deleted(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    made = await create(client, body)
    refused = await client.delete(f"/v1/evaluations/{made['id']}")
    assert (refused.status_code, refused.json()["remedy"]) == (409, "Cancel it first.")


def write_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text("weights")


def exists(path: str | Path) -> bool:
    return Path(path).exists()


async def test_a_checkpoint_is_evaluated_from_its_own_copy(
    parts: Parts, client: httpx.AsyncClient, body: dict[str, Any], run_body: dict[str, Any]
) -> None:
    """The run's teacher, which trained it, may be gone."""
    teacher = Path(run_body["model"]["path"]).with_name("teacher")
    shutil.copytree(run_body["model"]["path"], teacher)
    taught = run_body | {"objective": {"teacher_path": str(teacher), "teacher_update": "frozen"}}
    run_id = (await client.post("/v1/runs", json=taught)).json()["id"]
    shutil.rmtree(teacher)
    folder = write_checkpoint(parts.settings.run_folder(run_id), 2)
    template = Path("additional_chat_templates/tool_use.jinja")
    (folder / "hf" / template).parent.mkdir()
    (folder / "hf" / template).write_text("{{ messages }}")
    shutil.copytree(folder, folder.with_name("step-00000003 (copy)"))
    made = await create(client, {"run": run_id, "data": body["data"]})
    assert (made["run"], made["step"], made["model"]) == (run_id, 2, run_body["model"]["path"])
    copy = Path(made["config"]["model"]["path"])
    (folder / "hf/model.safetensors").unlink()
    assert (copy / "model.safetensors").read_text() == "weights 2"
    assert (copy / template).exists()
    await client.post(f"/v1/evaluations/{made['id']}/cancel")
    assert not exists(copy)
    assert not parts.settings.run_folder(made["id"]).exists()


async def test_a_published_version_is_announced_under_the_evaluations_name(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, server: FakeInstance, body: dict[str, Any], run_body: Any
) -> None:
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    store = WeightStore(parts.settings.weights_of(run_id), run_id)
    store.publish(7, write_weights)
    shutil.copytree(store.path(7), store.folder / "v00000008-best")
    made = await create(client, {"run": run_id, "data": body["data"]})
    assert (made["step"], made["config"]["model"]["path"]) == (7, run_body["model"]["path"])
    await look(parts)
    announced: Any = await redis.hgetall(streams.weights(made["id"]))
    manifest = verify(Path(announced[b"path"].decode()), announced[b"checksum"].decode())
    assert (manifest.run_id, manifest.version, announced[b"version"]) == (made["id"], 7, b"7")
    assert {task.min_weight_version for task in await fed(redis, made["id"])} == {7}


async def test_a_restart_deletes_the_weights_of_evaluations_that_were_not_stored_or_have_ended(
    parts: Parts, client: httpx.AsyncClient, body: dict[str, Any], run_body: dict[str, Any]
) -> None:
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    write_checkpoint(parts.settings.run_folder(run_id), 2)
    made = await create(client, {"run": run_id, "data": body["data"]})
    lost = parts.settings.run_folder("evaluation-lost")
    lost.mkdir()
    (lost / ".unsettled").touch()
    await parts.runs.settle()
    assert exists(made["config"]["model"]["path"])
    assert not lost.exists()


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"run": "no-such-run"}, 422, "run"),
        ({"model": {"path": "examples/none"}}, 422, "model.path"),
        ({"model": None}, 422, "run"),
        ({"step": 3}, 422, "step"),
        ({"data": {"validation": "none.jsonl"}}, 422, "data.validation"),
        ({"data": {"validation": [{"path": "examples/embedded/policy/config.json"}]}}, 422, "data.validation.0"),
        ({"evaluation": {"num_samples": 0}}, 422, "evaluation.num_samples"),
    ],
)
async def test_a_wrong_request_is_refused_with_its_field(
    client: httpx.AsyncClient, body: dict[str, Any], change: dict[str, Any], status: int, field: str
) -> None:
    request = {**body, **change}
    if "run" in change:
        del request["model"]
    reply = await client.post("/v1/evaluations", json=request)
    assert (reply.status_code, reply.json().get("field")) == (status, field), reply.text


async def test_two_evaluations_differ_by_the_questions_learned_and_forgotten(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, server: FakeInstance, body: dict[str, Any]
) -> None:
    request = {**body, "data": {"validation": body["data"]["validation"][:1]}}
    ids = []
    for correct in ((4, 0, 1, 2, 0), (4, 4, 2, 1, 0)):
        ids.append((await create(client, request))["id"])
        await look(parts)
        for task, num_correct in zip(await fed(redis, ids[-1]), correct, strict=True):
            await judge(redis, task, num_correct)
        await look(parts)
        await look(parts)
    found = (await client.get(f"/v1/evaluations/{ids[0]}/difference?second={ids[1]}")).json()
    (change,) = found["sets"]
    assert [item["question_id"] for item in change["learned"]] == ["q1", "q2"]
    assert [item["question_id"] for item in change["forgotten"]] == ["q3"]
    assert (change["num_better"], change["num_worse"], found["num_unpaired"]) == (2, 1, 0)
    assert change["difference"]["value"] == pytest.approx((11 - 7) / 20)


async def test_a_stored_configuration_that_this_version_does_not_accept_ends_its_evaluation_alone(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, server: FakeInstance, body: dict[str, Any]
) -> None:
    """An earlier version may have accepted fields that have been removed since."""
    made = await create(client, body)
    await look(parts)
    await judge(redis, (await fed(redis, made["id"]))[0], 4)
    await look(parts)
    async with parts.database.write() as session:
        row = await get_evaluation(session, made["id"])
        row.config = {**row.config, "sampler": {"warmth": 1}}
    parts.examiner._works.clear()  # as in a new process
    assert (await shown(client, made["id"]))["num_done"] == 1
    await look(parts)
    ended = await shown(client, made["id"])
    assert (ended["state"], ended["results"]) == ("failed", [])
    assert "sampler" in ended["reason"]
    assert (await client.get("/v1/evaluations")).json()["items"][0]["state"] == "failed"


async def test_a_repeated_key_gives_the_first_evaluation(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "one"}
    first, second = [(await client.post("/v1/evaluations", json=body, headers=headers)).json()["id"] for _ in range(2)]
    assert first == second
    other = await client.post("/v1/evaluations", json={**body, "name": "other"}, headers=headers)
    assert (other.status_code, other.json()["field"]) == (422, "Idempotency-Key")


@pytest.mark.both_databases
async def test_pages_of_the_listing_have_each_evaluation_once(
    client: httpx.AsyncClient, body: dict[str, Any], server: FakeInstance
) -> None:
    made = [(await create(client, body))["id"] for _ in range(5)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = (
            await client.get("/v1/evaluations", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        ).json()
        seen += [item["id"] for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
        if len(seen) == 2:
            await create(client, body)  # a newer one moves nothing
    assert seen == made[::-1]
    for path in ("/v1/evaluations", "/v1/experiments"):
        wrong = await client.get(path, params={"cursor": "x"})
        assert (wrong.status_code, wrong.json()["field"]) == (422, "cursor")

"""The policy of a run that trains, asked with the real `openai` client: through the API, from a real engine."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
import torch
from redis.asyncio import Redis
from typer.testing import CliRunner

from services.api.application import make_application
from services.api.container import Parts, make_parts
from services.api.storage import history
from services.api.storage.database import open_database
from services.api.storage.runs import Run
from services.contracts import streams
from services.contracts.errors import NotFoundError
from services.contracts.events import ReadableResponse, ReadingMaterial, Sample, SamplesTaken
from services.contracts.messages import Question
from services.contracts.run_config import read_run_config
from services.contracts.teacher_text import PAPER, Wording, teacher_text
from services.learner.objectives.teacher_prompt import teacher_prompt_ids
from services.rollout.serving.share import WAITING_PER_SLOT
from services.runtime.settings import Settings
from services.runtime.tokenizer import prompt_ids
from tests.services.api.fakes import eventually, looping, served
from tests.services.rollout.conftest import TOKEN, Deployment
from tests.services.rollout.models import TOOL_CALL, make_model, make_tokenizer
from tests.services.rollout.references import mismatch
from turnout.cli.main import app

pytestmark = pytest.mark.asyncio(loop_scope="module")
KEY = "correct horse battery"
QUESTION = [{"role": "user", "content": "w3 w4 w5"}]
SLOTS = 2
"""An eighth of the run's 16 sequences."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(deployment: Deployment) -> AsyncIterator[tuple[Parts, str]]:
    """An API, with keys, that knows the deployment's run; and its URL."""
    settings = Settings(
        home=deployment.folder,
        redis_url=deployment.redis_url,
        service_token=TOKEN,
        api_key=KEY,
        rate_limit="",
    )
    redis = Redis.from_url(deployment.redis_url)
    parts = make_parts(settings, redis, await open_database(settings))
    config = read_run_config(deployment.redis.get(streams.config(deployment.run_id)))  # type: ignore[arg-type]
    async with parts.database.write() as session:
        values = {"name": "first", "state": "running", "desired": "running", "created_at": time.time()}
        session.add(Run(id=deployment.run_id, config=config.model_dump(mode="json"), queued_at=0.0, **values))
    async with served(make_application(parts)) as url:
        yield parts, url
    await parts.close()
    await redis.aclose()


def client_of(url: str, key: str = KEY) -> Any:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(api: tuple[Parts, str]) -> AsyncIterator[Any]:
    async with client_of(api[1]) as made:
        yield made


async def test_models_chat_and_completions(deployment: Deployment, client: Any) -> None:
    run_id = deployment.run_id
    [model] = (await client.models.list()).data
    assert (model.id, model.weight_version, model.max_model_len) == (run_id, 0, 1000)
    assert (await client.models.retrieve(f"{run_id}@0")).id == run_id

    answer = await client.chat.completions.create(
        model=run_id, messages=QUESTION, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    assert (answer.system_fingerprint, answer.usage.completion_tokens) == (f"{run_id}@0", 6)
    assert len(answer.choices[0].logprobs.content) == 6
    assert all(len(token.top_logprobs) == 3 for token in answer.choices[0].logprobs.content)

    prompt = "<user> w3 w4 w5 <assistant>"
    echoed = await client.completions.create(
        model=f"{run_id}@0", prompt=prompt, max_tokens=6, temperature=0, echo=True, logprobs=1
    )
    [choice] = echoed.choices
    assert choice.text.split() == f"{prompt} {answer.choices[0].message.content}".split()
    assert len(choice.logprobs.tokens) == 11
    ids = torch.tensor(make_tokenizer()([prompt])["input_ids"])
    with torch.no_grad():
        expected = make_model(0)(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).flatten()
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:5] == pytest.approx(expected.tolist(), abs=1e-3)

    stream = await client.chat.completions.create(
        model=run_id,
        messages=QUESTION,
        max_tokens=6,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert len(chunks) > 2, "in parts; the server may join tokens that come together"
    assert (chunks[-1].system_fingerprint, chunks[-1].usage.completion_tokens) == (f"{run_id}@0", 6)


async def test_what_cannot_be_asked_is_refused_with_the_remedy(deployment: Deployment, client: Any) -> None:
    run_id = deployment.run_id
    for model, text in (
        ("run-none", "does not exist. GET /v1/models"),
        (f"{run_id}@7", f"No rollout server has version 7 of run {run_id}, and it is not on disk. Choose one of 0,"),
        (f"{run_id}@newest", "is not a weight version"),
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model=model, messages=QUESTION)
        assert text in missing.value.message
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    for field, value in (("n", SLOTS + 1), ("messages", "hello"), ("top_logprobs", 21), ("use_beam_search", True)):
        body = {"model": run_id, "messages": QUESTION, "logprobs": True, "max_tokens": 1, field: value}
        with pytest.raises(openai.BadRequestError, match=field.removeprefix("top_")):
            await client.post("/chat/completions", body=body, cast_to=object)
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        await client.completions.create(model=run_id, prompt=[3, 200], max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="1000"):
        await client.completions.create(model=run_id, prompt=[3] * 1001, max_tokens=1)


async def test_tool_calls_are_parsed_as_the_chat_template_shows_them(deployment: Deployment, client: Any) -> None:
    adding = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    asked: dict[str, Any] = {"model": deployment.run_id, "messages": QUESTION, "max_tokens": 1, "tools": [adding]}
    asked["extra_body"] = {"allowed_token_ids": make_tokenizer().convert_tokens_to_ids([TOOL_CALL])}
    [choice] = (await client.chat.completions.create(**asked)).choices
    [call] = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"x": 1})
    parts = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    calls = [call for chunk in parts for one in chunk.choices for call in one.delta.tool_calls or ()]
    assert "".join(call.function.name or "" for call in calls) == "add"
    assert json.loads("".join(call.function.arguments or "" for call in calls)) == {"x": 1}
    [plain] = (await client.chat.completions.create(**asked, tool_choice="none")).choices
    assert (plain.message.content.strip(), plain.message.tool_calls or []) == (TOOL_CALL, [])


async def test_roles(api: tuple[Parts, str], deployment: Deployment) -> None:
    parts, url = api
    keys = {role: (await parts.keys.create(role, role)).key for role in ("read", "use", "operate")}  # type: ignore[arg-type]
    body = {"model": deployment.run_id, "prompt": "w3", "max_tokens": 1}
    async with httpx.AsyncClient(base_url=url) as user:
        for key, status in (("wrong", 401), (keys["read"], 403), (keys["use"], 200), (keys["operate"], 200)):
            reply = await user.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
            assert reply.status_code == status
    bearer = {"Authorization": f"Bearer {keys['use']}"}
    async with httpx.AsyncClient(base_url=url, headers=bearer) as user:
        download = await user.post("/v1/completions", json=body | {"model": "someone/model"})
        assert (download.status_code, download.json()["error"]["type"]) == (403, "Forbidden")
        assert (await user.get("/v1/models")).status_code == 200
        for path in ("/v1/runs", f"/v1/runs/{deployment.run_id}", "/v1/keys", "/metrics"):
            assert (await user.get(path)).status_code == 403, path


async def test_a_stored_response_is_read_by_other_teachers(api: tuple[Parts, str], deployment: Deployment) -> None:
    parts, url = api
    run_id, tokenizer = deployment.run_id, make_tokenizer()
    question = Question(id="q", kind="exact", prompt="w3 w4", system="w2", solution="w40 w41")
    ids = [20, 21, 199, 1]
    common: dict[str, Any] = {"tokens": ["w"] * 4, "reward": 0.0, "correct": False, "route": "sdpo", "advantage": 0.0}
    responses = [
        ReadableResponse(index=0, token_ids=ids, demonstration="w14"),
        ReadableResponse(index=1, token_ids=ids[:2], demonstration="w9 w10"),
        ReadableResponse(index=2, token_ids=ids, demonstration=""),
    ]
    samples = [Sample(index=index, text="w", feedback=" w30 " * (index == 0), **common) for index in range(3)]
    group: dict[str, Any] = {
        "run_id": run_id,
        "at": 1.0,
        "question_id": "q",
        "prompt": "w3 w4",
        "answer": "",
        "samples": samples,
    }
    material = ReadingMaterial(question=question, responses=responses)
    async with parts.database.write() as session:
        await history.store(session, SamplesTaken(step=1, group_id="a/group", material=material, **group))
        await history.store(session, SamplesTaken(step=2, group_id="old", **group))
    which = {"step": 1, "group_id": "a/group", "index": 0}
    teachers = [{"demonstrations": [1]}, {"solution": "w8", "reference": True, "feedback": True, "closing": "w7"}]
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as user:

        async def read(**body: Any) -> Any:
            values = {**which, "teachers": teachers, **body}
            return await user.post(f"/v1/runs/{run_id}/samples/readings", json=values)

        found = (await read(version=0)).raise_for_status().json()
        for body, status, text in (
            ({"index": 4}, 404, "no response 4 of group 'a/group' of step 1"),
            ({"step": 2, "group_id": "old"}, 409, "did not keep its token ids"),
            ({"index": 1, "teachers": [{"feedback": True}]}, 422, "This response has no feedback to read"),
            ({"teachers": [{"demonstrations": [5]}]}, 422, "The group has no response 5. Choose one of 0, 1, 2."),
            ({"teachers": [{"demonstrations": [2]}]}, 422, "Response 2 leaves a teacher nothing to read"),
            ({"version": 7}, 404, "version 7"),
            ({"teachers": [{"solution": "w3 " * 1000}]}, 422, "1000"),
        ):
            reply = await read(**body)
            assert reply.status_code == status, reply.text
            assert text in f"{reply.json()['detail']} {reply.json()['remedy']}"

    assert found["weights"] == f"{run_id}@0"
    wording = Wording("Correct solution:", PAPER.feedback_heading, "w7")
    prompts = [
        prompt_ids(tokenizer, question, question.prompt),
        teacher_prompt_ids(tokenizer, question, "w9 w10", None),
        teacher_prompt_ids(tokenizer, question, "w8", "w30", further=["w40 w41"], wording=wording),
    ]
    assert [one["num_prompt_tokens"] for one in found["teachers"]] == [len(prompt) for prompt in prompts[1:]]
    assert found["teachers"][0]["prompt"] == teacher_text("w3 w4", "w9 w10", None)
    for prompt, logprobs in zip(
        prompts, [found["policy"], *(one["logprobs"] for one in found["teachers"])], strict=True
    ):
        with torch.no_grad():
            scores = make_model(0)(torch.tensor([prompt + ids])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = scores.gather(1, torch.tensor(ids)[:, None]).flatten().tolist()
        assert logprobs == pytest.approx(expected, abs=1e-3)


def long(client: Any, model: str, **options: Any) -> Any:
    """A streamed answer of 600 tokens, which takes seconds."""
    return client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=600, stream=True, extra_body={"ignore_eos": True}, **options
    )


async def shown(deployment: Deployment) -> dict[str, float]:
    """The rollout server's gauges of served prompts."""
    record = deployment.record()
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as service:
        text = (await service.get(f"{record.url}/metrics")).text
    return {name: float(value) for name, value in re.findall(r"^turnout_served_(running|waiting) (\S+)", text, re.M)}


async def test_training_keeps_its_sequences_with_more_requests_than_its_share_takes(
    deployment: Deployment, client: Any
) -> None:
    options = {"logprobs": True, "top_logprobs": 20, "presence_penalty": 1.0, "top_p": 0.5}
    streams = [await long(client, deployment.run_id, **options) for _ in range(SLOTS * (1 + WAITING_PER_SLOT))]
    with pytest.raises(openai.RateLimitError, match="TURNOUT_SERVE_SHARE"):
        await long(client, deployment.run_id)
    served = await shown(deployment)
    assert served["running"] == SLOTS
    assert served["waiting"] >= 1
    deployment.feed("alongside", "w7 w8")
    group = await asyncio.to_thread(deployment.wait_group, "alongside")
    assert [rollout.status for rollout in group.rollouts] == ["ok"] * 4
    assert mismatch(group, seed=0) < 1e-3, "what served requests ask for changes nothing for training"
    for stream in streams:
        await stream.close()

    async def is_free() -> bool:
        """The streams' places are free once the servers have seen that their client left."""
        try:
            await client.completions.create(model=deployment.run_id, prompt="w3", max_tokens=1)
        except openai.RateLimitError:
            return False
        return True

    await eventually(is_free)
    assert await shown(deployment) == {"running": 0.0, "waiting": 0.0}


async def test_new_weights_while_a_request_is_answered(deployment: Deployment, client: Any) -> None:
    """The answer continues with them and says so, unless it was pinned to the version before."""
    run_id = deployment.run_id
    stored = deployment.store_version(1, seed=1)
    newest, pinned = await long(client, run_id), await long(client, f"{run_id}@0")
    first = [await anext(newest), await anext(pinned)]
    assert all(chunk.choices for chunk in first)
    reply = await asyncio.to_thread(deployment.load, 1, stored[0], stored[1].checksum)
    assert reply.status_code == 200
    with pytest.raises(openai.APIError, match="Version 1 was loaded before version 0 had answered"):
        [_ async for _ in pinned]
    chunks = [chunk async for chunk in newest]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].system_fingerprint == f"{run_id}@0..1"
    after = await client.completions.create(model=f"{run_id}@1", prompt="w3", max_tokens=1)
    assert after.system_fingerprint == f"{run_id}@1"


async def test_the_command_asks_once_or_holds_a_conversation(
    api: tuple[Parts, str], deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await api[0].keys.create("someone", "use")
    monkeypatch.setenv("TURNOUT_API_KEY", key.key)
    always = ["--temperature", "0", "--max-tokens", "4", "--api-url", api[1]]

    async def turnout(*arguments: str, **options: Any) -> Any:
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, ["chat", *arguments, *always], **options))

    once = await turnout(deployment.run_id, "w3 w4")
    assert (once.exit_code, len(once.stdout.split())) == (0, 4)
    assert f"[{deployment.run_id}@" in once.stderr
    piped = await turnout(deployment.run_id, input="w3 w4")
    assert piped.stdout == once.stdout
    chunks = [json.loads(line) for line in (await turnout(deployment.run_id, "w3 w4", "--json")).stdout.splitlines()]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == once.stdout.rstrip("\n")
    refused = await turnout(deployment.run_id, "w3", "--version", "77")
    assert isinstance(refused.exception, NotFoundError)
    assert "version 77" in str(refused.exception)


async def test_the_newest_weights_of_an_ended_run_are_loaded_on_demand(
    api: tuple[Parts, str], deployment: Deployment, client: Any
) -> None:
    """The run ends, its server becomes idle, and loads what is asked for."""
    parts, _ = api
    run_id, options = deployment.run_id, {"prompt": "w3 w4 w5", "max_tokens": 6, "temperature": 0}
    live = await client.completions.create(model=f"{run_id}@1", **options)
    folder = parts.settings.run_folder(run_id)
    folder.mkdir(parents=True)
    (folder / "weights").symlink_to(deployment.folder / "weights")
    async with parts.database.write() as session:
        run = await session.get_one(Run, run_id)
        run.state, run.desired = "succeeded", "stopped"
    async with looping(parts):
        await eventually(lambda: deployment.record().run_id is None)
        patient = client.with_options(timeout=250)
        answer = await patient.completions.create(model=run_id, **options)
        several = await patient.completions.create(model=run_id, prompt="w3", max_tokens=1, n=SLOTS + 2)
    assert (answer.model, answer.system_fingerprint) == (f"{run_id}@1", f"{run_id}@1")
    assert answer.choices[0].text == live.choices[0].text
    assert len(several.choices) == SLOTS + 2, "all sequences are for served requests"

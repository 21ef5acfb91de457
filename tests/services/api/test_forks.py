"""Forks over REST: what the child is, what may change, what it needs from its parent."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from services.api.container import Parts
from services.api.resources.runs.fork import UNSETTLED
from services.runtime.settings import Settings
from services.runtime.weights.checkpoint_files import CheckpointManifest, FileEntry, checkpoint_folder, sha256_of
from tests.services.api.processes import api_process, environment_of


def write_checkpoint(run_folder: Path, step: int) -> Path:
    """A checkpoint as a learner leaves it, with little in it."""
    folder = checkpoint_folder(run_folder, step)
    files = {"hf/model.safetensors": f"weights {step}", "hf/config.json": "{}", "state/state.json": f"state {step}"}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    entries = [FileEntry(name, len(text), sha256_of(folder / name)) for name, text in files.items()]
    (folder / "manifest.json").write_bytes(msgspec.json.encode(CheckpointManifest(entries)))
    return folder


@pytest.fixture
async def parent(parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any]) -> str:
    """A run with checkpoints of steps 2 and 3."""
    run_id = str((await client.post("/v1/runs", json=run_body)).json()["id"])
    for step in (2, 3):
        write_checkpoint(parts.settings.runs_folder / run_id, step)
    return run_id


async def fork(client: httpx.AsyncClient, parent: str, **body: Any) -> httpx.Response:
    headers = body.pop("headers", {})
    return await client.post(f"/v1/runs/{parent}/fork", json=body, headers=headers)


async def test_a_fork_with_another_objective_drops_the_fields_that_it_does_not_take(
    parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any]
) -> None:
    body = run_body | {"objective": {"name": "srpo", "beta": 3.0, "clip_low": 0.1}}
    run_id = str((await client.post("/v1/runs", json=body)).json()["id"])
    write_checkpoint(parts.settings.runs_folder / run_id, 1)
    child = (await fork(client, run_id, changes={"objective": {"name": "grpo"}})).json()
    found = child["config"]["objective"]
    assert (found["name"], found["beta"], found["clip_low"]) == ("grpo", 1.0, 0.1)
    refused = await fork(client, run_id, changes={"objective": {"name": "grpo", "beta": 2.0}})
    assert refused.status_code == 422
    assert refused.json()["field"] == "changes.objective.beta"


@pytest.mark.both_databases
async def test_a_fork_begins_at_the_newest_checkpoint_with_changes(
    parts: Parts, client: httpx.AsyncClient, parent: str
) -> None:
    changes = {"training": {"steps": 9, "prompts_per_step": 16}, "objective": {"name": "grpo"}}
    reply = await fork(client, parent, changes=changes)
    assert reply.status_code == 201, reply.text
    child = reply.json()
    assert (await client.get(reply.headers["location"])).json() == child
    assert child["forked_from"] == {"run_id": parent, "step": 3}
    assert (child["state"], child["step"], child["num_steps"]) == ("queued", 3, 9)
    assert child["name"] == "first run from 3"
    old = (await client.get(f"/v1/runs/{parent}")).json()
    assert old["forked_from"] is None
    expected = old["config"] | {"name": child["name"]}
    expected["training"] = old["config"]["training"] | changes["training"]
    expected["objective"] = old["config"]["objective"] | {"name": "grpo"}
    assert child["config"] == expected
    [checkpoint] = (await client.get(f"/v1/runs/{child['id']}/checkpoints")).json()["items"]
    assert (checkpoint["step"], checkpoint["exists"]) == (3, True)
    assert checkpoint["bytes"] == len("weights 3{}state 3")
    listed = (await client.get("/v1/runs")).json()["items"]
    assert {run["id"]: run["forked_from"] for run in listed} == {parent: None, child["id"]: child["forked_from"]}
    events = (await client.get(f"/v1/runs/{child['id']}/events", params={"follow": "false"})).text
    assert f"Forked from run {parent} at step 3." in events


async def test_the_child_lives_without_its_parent(parts: Parts, client: httpx.AsyncClient, parent: str) -> None:
    reply = await fork(client, parent, checkpoint=2, name="child")
    child = reply.json()
    assert (child["name"], child["forked_from"]["step"]) == ("child", 2)
    await client.post(f"/v1/runs/{parent}/stop")
    assert (await client.delete(f"/v1/runs/{parent}")).status_code == 204
    assert not (parts.settings.runs_folder / parent).exists()
    folder = checkpoint_folder(parts.settings.runs_folder / child["id"], 2)
    assert (folder / "hf" / "model.safetensors").read_text() == "weights 2"
    assert (await client.get(f"/v1/runs/{child['id']}")).json()["forked_from"]["run_id"] == parent


async def test_deleting_the_child_leaves_the_parent_its_files(
    parts: Parts, client: httpx.AsyncClient, parent: str
) -> None:
    child = (await fork(client, parent, changes={"training": {"steps": 4}})).json()["id"]
    await client.post(f"/v1/runs/{child}/stop")
    assert (await client.delete(f"/v1/runs/{child}")).status_code == 204
    assert (checkpoint_folder(parts.settings.runs_folder / parent, 3) / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "changes.training.steps", "begins at step 3"),
        ({"changes": {"training": {"steps": 2}}}, "changes.training.steps", "more than 3"),
        ({"changes": {"model": {"path": "other/model"}}}, "changes.model.path", "cannot change"),
        ({"changes": {"model": {"dtype": "float32"}}}, "changes.model.dtype", "cannot change"),
        ({"changes": {"training": {"stepz": 5}}}, "changes.training.stepz", "not a field"),
        ({"changes": {"training": 5}}, "changes.training", "training is 5"),
        ({"changes": {"nothing": {}}}, "changes.nothing", "not a field"),
        ({"changes": {"name": "x", "training": {"steps": 9}}}, "changes.name", "cannot change"),
        ({"changes": {"preset": "paper-grpo"}}, "changes.preset", "cannot change"),
        (
            {"changes": {"training": {"steps": 9}, "rollout": {"group_size": 1}}},
            "changes.rollout.group_size",
            "need siblings",
        ),
        ({"changes": {"training": {"steps": 9}, "data": {"train": "/etc/passwd"}}}, "changes.data.train", "outside"),
        ({"checkpoint": 1}, "checkpoint", "Choose one of 2, 3"),
        ({"checkpoint": -1}, "checkpoint", "checkpoint is -1"),
        ({"name": "/"}, "name", "name is '/'"),
        ({"steps": 9}, "steps", "not a field"),
        ({"changes": []}, "changes", "changes is []"),
    ],
)
async def test_what_a_fork_cannot_be(
    parts: Parts, client: httpx.AsyncClient, parent: str, body: dict[str, Any], field: str, words: str
) -> None:
    reply = await fork(client, parent, **body)
    problem = reply.json()
    assert (reply.status_code, problem["field"]) == (422, field), reply.text
    assert words in f"{problem['detail']} {problem['remedy']}"
    assert problem["remedy"]
    assert [path.name for path in parts.settings.runs_folder.iterdir()] == [parent]


async def test_no_run_no_checkpoint(client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    assert (await fork(client, "none")).status_code == 404
    run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
    reply = await fork(client, run_id)
    assert (reply.status_code, reply.json()["title"]) == (409, "Conflict")


async def test_torn_checkpoints_are_no_choice(parts: Parts, client: httpx.AsyncClient, parent: str) -> None:
    newest = checkpoint_folder(parts.settings.runs_folder / parent, 3)
    (newest / "hf" / "model.safetensors").unlink()  # as if the parent's learner were deleting it
    assert (await fork(client, parent, changes={"training": {"steps": 9}})).status_code == 409
    (newest / "manifest.json").unlink()
    reply = await fork(client, parent, changes={"training": {"steps": 9}})
    assert reply.json()["forked_from"]["step"] == 2


async def test_a_checkpoint_cannot_name_files_outside_itself(
    parts: Parts, client: httpx.AsyncClient, parent: str
) -> None:
    secret = parts.settings.home / "secret"
    secret.write_text("secret")
    folder = parts.settings.runs_folder / parent
    shutil.rmtree(checkpoint_folder(folder, 2))
    manifest = CheckpointManifest([FileEntry("../../../../secret", 6, sha256_of(secret))])
    (checkpoint_folder(folder, 3) / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    assert (await fork(client, parent, changes={"training": {"steps": 9}})).status_code == 409


async def test_questions_for_evaluation_bring_back_its_switches(
    client: httpx.AsyncClient, parent: str, run_body: dict[str, Any]
) -> None:
    changes = {"training": {"steps": 9}, "data": {"validation": run_body["data"]["train"]}}
    evaluation = (await fork(client, parent, changes=changes)).json()["config"]["evaluation"]
    assert (evaluation["every_steps"], evaluation["before_training"], evaluation["after_training"]) == (50, True, True)


@pytest.mark.both_databases
async def test_a_repeated_request_makes_one_child(parts: Parts, client: httpx.AsyncClient, parent: str) -> None:
    body: dict[str, Any] = {"changes": {"training": {"steps": 9}}, "headers": {"Idempotency-Key": "once"}}
    replies = await asyncio.gather(*(fork(client, parent, **body) for _ in range(6)))
    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert len(list(parts.settings.runs_folder.iterdir())) == 2
    other = await fork(client, parent, **body | {"name": "other"})
    assert (other.status_code, other.json()["field"]) == (422, "Idempotency-Key")


KILLED = """
import asyncio, os, signal, sys
from redis.asyncio import Redis
from services.api.storage.database import open_database
from services.api.container import make_parts
from services.api.resources.runs.schemas import ForkRequest
from services.api.resources.runs.service import RunService
from services.runtime.settings import load_settings
settings = load_settings()
settings.roots = "/"

async def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    parts = make_parts(settings, Redis.from_url(settings.redis_url), await open_database(settings))
    setattr(parts.runs, sys.argv[1], kill)
    await parts.runs.fork(sys.argv[2], ForkRequest(name="killed" + sys.argv[1], changes={"training": {"steps": 9}}))

asyncio.run(main())
"""


def fork_killed_in(method: str, parent: str, environment: dict[str, str]) -> None:
    """Fork in a process that is killed when it calls this method."""
    ended = subprocess.run([sys.executable, "-c", KILLED, method, parent], env=environment)
    assert ended.returncode == -signal.SIGKILL


async def test_an_api_that_is_killed_while_it_forks_leaves_nothing_after_its_next_start(
    settings: Settings, parent: str, tmp_path: Path
) -> None:
    """Killed before the child is stored, and after: a partial fork is removed, a complete one is a run."""
    environment = environment_of(settings)
    write_checkpoint(
        settings.runs_folder / "unknown", 3
    )  # may belong to a run in another database, so it is not deleted
    for method in ("_add", "settle_folder"):
        fork_killed_in(method, parent, environment)
    assert len(list(settings.runs_folder.glob(f"*/{UNSETTLED}"))) == 2
    with api_process(environment, tmp_path / "log") as (_, api):
        [child] = [run for run in api.get("/v1/runs").json()["items"] if run["id"] != parent]
        [checkpoint] = api.get(f"/v1/runs/{child['id']}/checkpoints").json()["items"]
        assert (child["name"], checkpoint["exists"]) == ("killedsettle_folder", True)
    assert {path.name for path in settings.runs_folder.iterdir()} == {parent, child["id"], "unknown"}
    assert not list(settings.runs_folder.glob(f"*/{UNSETTLED}"))


async def test_a_fork_keeps_its_parents_adapter(
    parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any]
) -> None:
    """It may run on other ranks and another ZeRO stage; the adapter's shape is the checkpoint's."""
    lora = {"rank": 4, "target_modules": ["q_proj"]}
    body = run_body | {"model": run_body["model"] | {"lora": lora}}
    run_id = str((await client.post("/v1/runs", json=body)).json()["id"])
    write_checkpoint(parts.settings.runs_folder / run_id, 2)
    changed = {"steps": 9, "num_ranks": 2, "zero_stage": 3}
    reply = await fork(client, run_id, changes={"training": changed})
    assert reply.status_code == 201, reply.text
    assert reply.json()["config"]["model"]["lora"] == lora | {"alpha": 32.0, "load_in_4bit": False}
    assert reply.json()["config"]["training"].items() >= changed.items()
    for other in ({"rank": 8}, None):
        refused = await fork(client, run_id, changes={"model": {"lora": other}, "training": {"steps": 9}})
        assert (refused.status_code, refused.json()["field"]) == (422, "changes.model.lora")


async def test_changes_that_no_configuration_can_hold_are_refused(client: httpx.AsyncClient, parent: str) -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"training": deep}
    for changes in (deep, {"training": {"steps": 2**70}}, {"optimizer": {"betas": [2**70]}}):
        refused = await fork(client, parent, changes=changes)
        assert (refused.status_code, refused.json()["field"]) == (422, "changes"), refused.text

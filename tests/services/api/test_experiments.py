"""Experiments over REST: stored before the first run, completed by the loop, across restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.api import application
from services.api.container import Parts, make_parts
from services.api.storage.database import open_database
from services.api.storage.experiments import get_experiment
from services.contracts.events import EvaluationFinished, RunStateChanged, StepFinished
from services.contracts.run_config import merge
from services.runtime.settings import Settings
from tests.conftest import ROW
from tests.services.api.fakes import client_of, eventually, looping

RATES = (1e-4, 2e-4)


@pytest.fixture
def file(run_body: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Two methods, two rates, two tuning seeds, two final seeds: 8 tuning runs, 4 final ones."""
    for name in ("validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text(ROW)
    return {
        "name": "two methods",
        "run": {"model": run_body["model"], "data": run_body["data"], "training": {"steps": 2}},
        "methods": {"srpo": {}, "grpo": {"objective": {"name": "grpo"}}},
        "baseline": "grpo",
        "tuning": {
            "seeds": [11, 12],
            "grid": {"optimizer.learning_rate": list(RATES)},
            "changes": {"data": {"validation": str(tmp_path / "validation.jsonl")}},
        },
        "final": {"seeds": [1, 2], "changes": {"data": {"validation": str(tmp_path / "test.jsonl")}}},
        "budgets": {"steps": [2]},
        "claims": [{"claim": "SRPO wins", "higher": {"method": "srpo"}, "lower": {"method": "grpo"}}],
    }


async def created(client: httpx.AsyncClient, file: dict[str, Any]) -> dict[str, Any]:
    reply = await client.post("/v1/experiments", json=file)
    assert reply.status_code == 201, reply.text
    found: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"/v1/experiments/{found['id']}"
    return found


def accuracy_of(run: dict[str, Any]) -> float:
    """SRPO learns best at the higher rate, GRPO at the lower one; SRPO wins."""
    rate, method = run["config"]["optimizer"]["learning_rate"], run["objective"]
    seed = run["config"]["training"]["seed"]
    fits = (method == "srpo") == (rate == RATES[1])
    return (0.5 if fits else 0.3) + (0.2 if method == "srpo" else 0.0) + 0.001 * (seed % 10)


async def play(parts: Parts, client: httpx.AsyncClient, run_id: str, state: str = "succeeded") -> None:
    """Report what a learner would for a whole run."""
    run = (await client.get(f"/v1/runs/{run_id}")).json()
    said: dict[str, Any] = {"run_id": run_id, "at": time.time()}
    moves = [RunStateChanged(state=word, **said) for word in ("starting", "running", state)]  # type: ignore[arg-type]
    report: list[Any] = [
        StepFinished(step=step, metrics={"seconds": 1.0, "reward_mean": 0.5}, **said) for step in (1, 2)
    ]
    report += [
        EvaluationFinished(
            step=step, split="validation", num_questions=1, num_samples=1, accuracy=value, pass_at_k=value, **said
        )
        for step, value in ((0, 0.1), (2, accuracy_of(run)))
    ]
    await parts.journal.store([*moves[:2], *report, moves[2]])


async def rounds(parts: Parts, client: httpx.AsyncClient, experiment_id: str, *, until: int = 100) -> dict[str, Any]:
    """Let the loop and a learner take turns until the experiment has ended, or `until` runs have."""
    for _ in range(until):
        await parts.experiments.step()
        found: dict[str, Any] = (await client.get(f"/v1/experiments/{experiment_id}")).json()
        if found["state"] != "running":
            break
        waiting = [item["run_id"] for item in found["runs"] if item["state"] == "queued"]
        assert len(waiting) <= 2, "one for the learner, and one in the queue"
        await play(parts, client, waiting[0])
    return found


async def test_the_next_run_starts_when_one_ends(
    parts: Parts, client: httpx.AsyncClient, file: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for the loop's next round."""
    monkeypatch.setattr(application, "EXPERIMENT_SECONDS", 1e6)
    async with looping(parts):
        await eventually(lambda: "experiments" in parts.status.rounds)
        made = await created(client, file)

        async def queued() -> list[str]:
            runs = (await client.get(f"/v1/experiments/{made['id']}")).json()["runs"]
            return [run["run_id"] for run in runs if run["state"] == "queued"]

        first, _ = await eventually(lambda: two(queued()))
        await play(parts, client, first)
        assert first not in await eventually(lambda: two(queued()))


async def two(found: Awaitable[list[str]]) -> list[str]:
    """The runs once there are two of them."""
    runs = await found
    return runs if len(runs) == 2 else []


@pytest.mark.both_databases
async def test_an_experiment_tunes_then_reports_paired_results(
    parts: Parts, client: httpx.AsyncClient, file: dict[str, Any]
) -> None:
    made = await created(client, file)
    assert (made["state"], made["chosen"], made["file"]) == ("running", None, file)
    assert len(made["digest"]) == 64
    assert len(made["inputs"]) == 3
    assert len(made["runs"]) == 8
    ended = await rounds(parts, client, made["id"])
    assert ended["state"] == "succeeded"
    assert ended["chosen"] == {
        "srpo": {"optimizer.learning_rate": RATES[1]},
        "grpo": {"optimizer.learning_rate": RATES[0]},
    }
    assert ended["scores"]["srpo"][1] == pytest.approx([0.701, 0.702])
    finals = [item for item in ended["runs"] if item["phase"] == "final"]
    assert [(item["method"], item["seed"]) for item in finals] == [("srpo", 1), ("grpo", 1), ("srpo", 2), ("grpo", 2)]
    results = (await client.get(f"/v1/experiments/{made['id']}/results")).json()
    srpo, grpo = results["methods"]
    assert srpo["score"]["values"] == pytest.approx([0.701, 0.702])
    assert grpo["score"]["values"] == pytest.approx([0.501, 0.502])
    assert srpo["difference"]["mean"] == pytest.approx(0.2)
    assert [claim["verdict"] for claim in results["claims"]] == ["shown"]
    assert [item["id"] for item in (await client.get("/v1/experiments")).json()["items"]] == [made["id"]]


async def test_a_restart_in_the_middle_repeats_nothing(
    parts: Parts, client: httpx.AsyncClient, settings: Settings, redis: Redis, file: dict[str, Any]
) -> None:
    made = await created(client, file)
    await rounds(parts, client, made["id"], until=5)
    again = make_parts(settings, redis, await open_database(settings))
    try:
        async with client_of(again) as second:
            ended = await rounds(again, second, made["id"])
            runs = (await second.get("/v1/runs?limit=200")).json()["items"]
    finally:
        await again.close()
    assert ended["state"] == "succeeded"
    assert len(runs) == 12


async def test_a_repeated_key_returns_the_first_experiment(client: httpx.AsyncClient, file: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = await client.post("/v1/experiments", json=file, headers=headers)
    assert (await client.post("/v1/experiments", json=file, headers=headers)).json()["id"] == first.json()["id"]
    other = await client.post("/v1/experiments", json=file | {"name": "other"}, headers=headers)
    assert (other.status_code, other.json()["field"]) == (422, "Idempotency-Key")


async def test_stop_ends_its_runs_and_resume_continues_them(
    parts: Parts, client: httpx.AsyncClient, file: dict[str, Any]
) -> None:
    made = await created(client, file)
    await parts.experiments.step()
    path = f"/v1/experiments/{made['id']}"
    assert (await client.delete(path)).status_code == 409
    assert (await client.post(f"{path}/stop")).json()["state"] == "stopped"
    states = {run["state"] for run in (await client.get("/v1/runs")).json()["items"]}
    assert states == {"stopped"}
    await parts.experiments.step()
    assert len((await client.get("/v1/runs")).json()["items"]) == 2, "a stopped experiment starts no runs"
    assert (await client.post(f"{path}/resume")).json()["state"] == "running"
    ended = await rounds(parts, client, made["id"])
    assert ended["state"] == "succeeded"
    assert (await client.post(f"{path}/stop")).status_code == 409
    assert (await client.delete(path)).status_code == 204
    assert (await client.get(path)).status_code == 404
    assert len((await client.get("/v1/runs?limit=200")).json()["items"]) == 12, "the runs stay"


async def test_a_stop_while_runs_are_being_started_leaves_none_behind(
    parts: Parts, client: httpx.AsyncClient, file: dict[str, Any]
) -> None:
    made = await created(client, file)
    starting = asyncio.create_task(parts.experiments.step())
    await asyncio.sleep(0)  # the loop has begun its round
    stopped = await client.post(f"/v1/experiments/{made['id']}/stop")
    await starting
    assert stopped.json()["state"] == "stopped"
    assert {run["state"] for run in (await client.get("/v1/runs")).json()["items"]} <= {"stopped"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"other": 1}\n', "validation.jsonl has changed since the experiment was created"),
        (None, "validation.jsonl cannot be read: No such file or directory"),
    ],
)
async def test_data_that_changes_under_an_experiment_ends_it_alone(
    parts: Parts, client: httpx.AsyncClient, file: dict[str, Any], tmp_path: Path, text: str | None, reason: str
) -> None:
    made = await created(client, file)
    (tmp_path / "other.jsonl").write_text(ROW)
    file["tuning"]["changes"]["data"]["validation"] = str(tmp_path / "other.jsonl")
    other = await created(client, file)
    if text is None:
        (tmp_path / "validation.jsonl").unlink()
    else:
        (tmp_path / "validation.jsonl").write_text(text)
    await parts.experiments.step()
    found = (await client.get(f"/v1/experiments/{made['id']}")).json()
    assert found["state"] == "failed"
    assert reason in found["reason"]
    assert (await client.get(f"/v1/experiments/{other['id']}")).json()["runs"][0]["state"] == "queued"


@pytest.mark.parametrize(
    ("section", "values", "reason"),
    [
        ("budgets", {"hours": [1]}, "budgets.hours"),
        (
            "claims",
            [{"claim": "c", "higher": {"method": "srpo", "metric": "gone"}, "lower": {"method": "grpo"}}],
            "gone",
        ),
        ("run", {"optimizer": {"warmth": 1}}, "optimizer.warmth"),
    ],
)
async def test_a_stored_file_that_this_version_does_not_accept_ends_its_experiment_alone(
    parts: Parts, client: httpx.AsyncClient, file: dict[str, Any], section: str, values: Any, reason: str
) -> None:
    """An earlier version may have accepted fields, metrics and values that have been removed since."""
    made, other = await created(client, file), await created(client, file)
    async with parts.database.write() as session:
        row = await get_experiment(session, made["id"])
        row.file = {**row.file, section: merge(row.file[section], values) if isinstance(values, dict) else values}
    await parts.experiments.step()
    listed = {item["id"]: item for item in (await client.get("/v1/experiments")).json()["items"]}
    assert listed[other["id"]]["state"] == "running"
    assert (listed[made["id"]]["state"], reason in listed[made["id"]]["reason"]) == ("failed", True)
    path = f"/v1/experiments/{made['id']}"
    if section == "run":  # its runs, if it has any, can be shown nevertheless
        assert (await client.get(path)).json()["runs"][0]["num_steps"] == 0
        return
    for reply in (await client.get(path), await client.get(f"{path}/results")):
        assert reply.status_code == 422
        assert reason in reply.json()["detail"]
        assert "list of runs" in reply.json()["remedy"]
    assert (await client.delete(path)).status_code == 204


async def test_a_method_whose_tuning_runs_all_fail_ends_the_experiment(
    parts: Parts, client: httpx.AsyncClient, file: dict[str, Any]
) -> None:
    made = await created(client, file)
    for _ in range(8):
        await parts.experiments.step()
        found = (await client.get(f"/v1/experiments/{made['id']}")).json()
        for item in found["runs"]:
            if item["state"] == "queued":
                await play(parts, client, item["run_id"], "failed" if item["method"] == "grpo" else "succeeded")
    await parts.experiments.step()
    found = (await client.get(f"/v1/experiments/{made['id']}")).json()
    assert (found["state"], found["reason"]) == (
        "failed",
        "Every tuning run of grpo failed; see the reasons of the runs.",
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"methods": {}}, "methods"),
        ({"run": {"model": {"path": "/nowhere"}}}, "model.path"),
        ({"final": {"seeds": [11]}}, "tuning.seeds"),
    ],
)
async def test_a_wrong_file_is_refused_before_anything_is_stored(
    client: httpx.AsyncClient, file: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    for section, value in change.items():
        file[section] = value if not value else file[section] | value
    reply = await client.post("/v1/experiments", json=file)
    assert reply.status_code == 422
    assert field in (reply.json()["field"] or reply.json()["detail"])
    assert (await client.get("/v1/experiments")).json()["items"] == []


async def test_a_file_without_tuning_names_validation_questions_for_the_final_runs_only(
    parts: Parts, client: httpx.AsyncClient, file: dict[str, Any]
) -> None:
    del file["tuning"]
    file["run"]["evaluation"] = {"every_steps": 1}
    found = await rounds(parts, client, (await created(client, file))["id"])
    assert (found["state"], found["scores"], len(found["runs"])) == ("succeeded", None, 4)

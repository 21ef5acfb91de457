"""Every `turnout runs` command against the real API, with a stand-in for the learner."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli.client import AsyncClient, Client
from services.cli.exits import EXIT_OK, EXIT_STOPPED
from services.cli.launcher import Deployment
from services.cli.main import app
from services.contracts.errors import ConfigurationError, ConflictError, NotFoundError
from tests.cli.rings import until

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def client(deployment: Deployment) -> Client:
    return Client(deployment.plan.api_url)


def turnout(deployment: Deployment, *arguments: str, code: int = EXIT_OK) -> str:
    """Output of one command; its faults are raised as they are."""
    result = CliRunner().invoke(app, [*arguments, "--api-url", deployment.plan.api_url], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def started(deployment: Deployment, run_file: Path, *arguments: str) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(turnout(deployment, "runs", "start", str(run_file), "--json", *arguments))
    return run


def in_state(client: Client, run_id: str, *states: str) -> None:
    until(lambda: client.run(run_id).state in states)


def test_a_run_from_start_to_report(deployment: Deployment, run_file: Path, tmp_path: Path) -> None:
    out = turnout(deployment, "runs", "start", str(run_file), "--watch", "--set", "training.steps=5")
    assert "step 5/5  reward 1.000  accuracy 1.000  grpo 0.60  sdpo 0.40" in out
    assert "evaluation before training: avg@16 25.0%" in out
    assert "evaluation after step 5: avg@16 50.0%, pass@16 75.0% on 64 validation questions" in out
    assert out.rstrip().endswith("is succeeded")

    listed = json.loads(turnout(deployment, "runs", "list", "--json"))
    run = listed[0]
    assert (run["name"], run["state"], run["step"], run["num_steps"]) == ("small", "succeeded", 5, 5)
    shown = json.loads(turnout(deployment, "runs", "show", run["id"][:-2], "--json"))
    assert shown["run"]["config"]["training"]["steps"] == 5
    assert shown["step"]["metrics"]["reward_mean"] == 1.0
    assert "avg@16" in turnout(deployment, "runs", "show", run["id"])

    report = json.loads(turnout(deployment, "runs", "report", run["id"], "--out", str(tmp_path / "report"), "--json"))
    page = Path(report["html"]).read_text()
    assert "avg@16 went from 25.0% to 50.0% (+25.0 points) on 64 held-out questions" in page

    png = tmp_path / "compare.png"
    compared = json.loads(turnout(deployment, "runs", "compare", run["id"], run["id"], "--png", str(png), "--json"))
    assert compared["runs"][0]["accuracy_after"] == 0.5
    assert png.read_bytes().startswith(b"\x89PNG")

    lines = turnout(deployment, "runs", "watch", run["id"], "--json").splitlines()
    assert [json.loads(line).get("step", {}).get("step") for line in lines if '"step":{' in line] == [1, 2, 3, 4, 5]
    turnout(deployment, "runs", "delete", run["id"], "--yes")
    with pytest.raises(NotFoundError, match="There is no run"):
        turnout(deployment, "runs", "show", run["id"])


def test_pause_resume_stop_and_resume_again(deployment: Deployment, run_file: Path, client: Client) -> None:
    run_id = started(deployment, run_file, "--set", "training.steps=40")["id"]
    until(lambda: client.run(run_id).step >= 2)
    turnout(deployment, "runs", "pause", run_id)
    in_state(client, run_id, "paused")
    turnout(deployment, "runs", "resume", run_id)
    in_state(client, run_id, "running")
    turnout(deployment, "runs", "stop", run_id)
    in_state(client, run_id, "stopped")
    assert [item.step for item in client.checkpoints(run_id)]
    with pytest.raises(ConflictError):
        turnout(deployment, "runs", "pause", run_id)
    turnout(deployment, "runs", "watch", run_id, code=EXIT_STOPPED)
    turnout(deployment, "runs", "resume", run_id)
    in_state(client, run_id, "succeeded")
    assert [step.step for step in client.steps(run_id)] == list(range(1, 41))


def test_stop_now_ends_without_a_checkpoint(deployment: Deployment, run_file: Path, client: Client) -> None:
    run_id = started(deployment, run_file, "--set", "training.steps=1000")["id"]
    until(lambda: client.run(run_id).step >= 1)
    turnout(deployment, "runs", "stop", "--now", run_id)
    in_state(client, run_id, "stopped")
    assert client.checkpoints(run_id) == []


def test_watching_survives_a_restart_of_the_api(deployment: Deployment, run_file: Path, client: Client, capsys) -> None:
    from services.cli.watch import PlainLines, Progress

    run_id = started(deployment, run_file, "--set", "training.steps=60")["id"]
    until(lambda: client.run(run_id).step >= 1)
    progress = Progress(run_id)
    lines = PlainLines(progress)
    api = next(item for item in deployment.supervisor.children if item.child.instance == "api-0")
    assert api.process is not None
    os.kill(api.process.pid, signal.SIGKILL)
    api.process.wait()

    def look() -> None:
        progress.refresh(client)
        lines.draw()
        deployment.tick()

    until(lambda: progress.fault, look)
    until(lambda: progress.run is not None and progress.run.has_ended, look)
    out = capsys.readouterr().out
    assert "not reachable: No API answers" in out
    assert [step.step for step in progress.steps] == list(range(1, 61))
    assert all(out.count(f"step {step}/60 ") == 1 for step in range(1, 61))


def test_what_the_api_refuses_keeps_its_field_and_remedy(deployment: Deployment, run_file: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        turnout(deployment, "runs", "start", str(run_file), "--set", "data.train=missing.jsonl")
    assert caught.value.field == "data.train"
    assert "missing.jsonl" in caught.value.message
    assert caught.value.remedy


def test_the_same_idempotency_key_starts_one_run(deployment: Deployment, run_file: Path, client: Client) -> None:
    first = started(deployment, run_file, "--idempotency-key", "once")
    assert started(deployment, run_file, "--idempotency-key", "once")["id"] == first["id"]
    in_state(client, first["id"], "succeeded")


async def test_the_asynchronous_client_says_the_same(deployment: Deployment, run_file: Path, client: Client) -> None:
    values = client.run(started(deployment, run_file)["id"]).config
    async with AsyncClient(deployment.plan.api_url) as other:
        assert await other.ready()
        run = await other.create_run(values)
        kinds = []
        async for event in other.events(run.id):
            kinds.append(event.type)
            if event.data.get("state") == "succeeded":
                break
        assert kinds.count("step") == 6
        assert kinds.count("evaluation") == 2
        assert [step.step async for step in other.steps(run.id)] == [1, 2, 3, 4, 5, 6]
        assert (await other.evaluations(run.id)) == client.evaluations(run.id)
        assert {item.kind for item in await other.services()} == {"api", "verifier", "rollout", "learner"}
        assert {item.id for item in client.runs()} == {item.id async for item in other.runs()}
        with pytest.raises(NotFoundError):
            await other.run("nobody")

"""Every `turnout runs` command against the real API, with a stand-in for the learner."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from typer.testing import CliRunner

from services.contracts.errors import ConfigurationError, ConflictError, NotFoundError
from tests.client.rings import until
from tests.conftest import ROOT
from tests.services.api.test_forks import write_checkpoint
from turnout import AsyncClient, Client
from turnout.cli.exits import (
    EXIT_CONFLICT,
    EXIT_NOT_FOUND,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
)
from turnout.cli.local.launcher import Deployment
from turnout.cli.main import app, main

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def client(deployment: Deployment) -> Client:
    return Client(deployment.plan.api_url)


def turnout(deployment: Deployment, *arguments: str, code: int = EXIT_OK) -> str:
    """Output of one command. Its errors are raised unchanged."""
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

    history_commands(deployment, run["id"])
    lines = turnout(deployment, "runs", "watch", run["id"], "--json").splitlines()
    assert [json.loads(line).get("step", {}).get("step") for line in lines if '"step":{' in line] == [1, 2, 3, 4, 5]
    turnout(deployment, "runs", "delete", run["id"], "--yes")
    with pytest.raises(NotFoundError, match="There is no run"):
        turnout(deployment, "runs", "show", run["id"])


def history_commands(deployment: Deployment, run_id: str) -> None:
    """Check everything that the API stores about a run of five steps, as text and as JSON."""

    def both(*command: str) -> tuple[list[str], Any]:
        text = turnout(deployment, *command).splitlines()
        return text, json.loads(turnout(deployment, *command, "--json"))

    text, steps = both("runs", "steps", run_id, "--after", "2")
    assert [step["step"] for step in steps] == [3, 4, 5]
    assert text[0].startswith("step\treward_mean\taccuracy")
    assert text[-1].startswith("5\t1\t1\t0.4")
    text, evaluations = both("runs", "evaluations", run_id)
    assert [item["accuracy"] for item in evaluations] == [0.25, 0.5]
    assert "50.0%" in text[-1]
    text, change = both("runs", "changes", run_id)
    assert [item["question_id"] for item in change["sets"][0]["learned"]] == ["q-7"]
    assert "    q-7  25% -> 50%" in text
    text, checkpoints = both("runs", "checkpoints", run_id)
    assert (text, checkpoints) == (["No checkpoints yet."], [])
    text, samples = both("runs", "samples", run_id, "--step", "3")
    assert (text, samples) == (["No samples of step 3."], [])
    text, pushes = both("runs", "pushes", run_id)
    assert (text, pushes) == (["No weights have been pushed yet."], [])

    lines = turnout(deployment, "runs", "events", run_id, "--no-follow", "--json").splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["data"]["step"] for event in events if event["type"] == "step"] == [1, 2, 3, 4, 5]
    # Following continues after the given event, and stops because the run has ended.
    text_lines = turnout(deployment, "runs", "events", run_id, "--after", events[-2]["id"]).splitlines()
    assert len(text_lines) == 1
    assert text_lines[0].endswith("state succeeded")

    text, services = both("services")
    assert {item["kind"] for item in services} == {"api", "verifier", "rollout", "learner"}
    assert text[0] == "service\tstate\trun\tweights\twaits for"
    assert len(text) == 1 + len(services)
    assert both("queues", "--run", run_id)[1] is not None
    assert run_id in turnout(deployment, "runs", "list", "--name", "small", "--sort", "-step", "--limit", "1")
    assert "demo.yaml" in turnout(deployment, "runs", "files").splitlines()
    assert turnout(deployment, "runs", "files", "demo.yaml") == Path("examples/runs/demo.yaml").read_text()


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
    from turnout.cli.views.progress import Progress
    from turnout.cli.views.watch import PlainLines

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
            await other.run("unknown")


def test_a_fork_goes_on_from_a_checkpoint_with_changes(deployment: Deployment, run_file: Path, client: Client) -> None:
    parent = started(deployment, run_file, "--set", "training.steps=2")["id"]
    in_state(client, parent, "succeeded")
    with pytest.raises(ConflictError, match="checkpoint"):
        turnout(deployment, "runs", "fork", parent)
    for step in (1, 2):
        write_checkpoint(deployment.plan.home / "runs" / parent, step)
    changes = ["--set", "training.steps=7", "--set", "objective.name=grpo"]
    child = json.loads(
        turnout(deployment, "runs", "fork", parent, "--checkpoint", "1", "--name", "child", *changes, "--json")
    )
    assert (child["forked_from"], child["name"], child["num_steps"]) == ({"run_id": parent, "step": 1}, "child", 7)
    config = client.run(child["id"]).config
    assert config == client.run(parent).config | {
        "name": "child",
        "training": config["training"],
        "objective": config["objective"],
    }
    assert (config["training"]["prompts_per_step"], config["objective"]["name"]) == (4, "grpo")
    in_state(client, child["id"], "succeeded")


def test_the_examples_of_the_client_page_work(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TURNOUT_API_URL", deployment.plan.api_url)
    blocks = re.findall(r"```python\n(.*?)```", Path("docs/client.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    exec(blocks[0], {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5", "6", "succeeded"]
    # The second one starts its own event loop.
    exec(blocks[1], {})
    assert capsys.readouterr().out.split() == ["1.0"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["runs", "show", "unknown"], EXIT_NOT_FOUND, "There is no run unknown. `turnout runs list` lists all runs."),
        (["runs", "start", "missing.yaml"], EXIT_USAGE, "cannot be read"),
        (["runs", "list", "--api-url", "http://127.0.0.1:9"], EXIT_UNAVAILABLE, "Start one with `turnout up`"),
        (["runs", "pause", "{ended}"], EXIT_CONFLICT, "succeeded"),
        (["runs", "watch", "{ended}"], EXIT_OK, ""),
        (["runs", "no-such-command"], EXIT_USAGE, "no-such-command"),
    ],
)
def test_exit_codes_are_those_of_the_page(
    deployment: Deployment,
    run_file: Path,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    ended = next(client.runs(state="succeeded"), None)
    run_id = ended.id if ended else started(deployment, run_file)["id"]
    in_state(client, run_id, "succeeded")
    monkeypatch.setenv("TURNOUT_API_URL", deployment.plan.api_url)
    monkeypatch.setattr("sys.argv", ["turnout", *(run_id if item == "{ended}" else item for item in arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code
    assert says in capsys.readouterr().err
    assert f"| {code} |" in Path("docs/cli.md").read_text()


def test_a_fault_is_json_where_that_was_asked_for(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["turnout", "runs", "show", "unknown", "--json", "--api-url", deployment.plan.api_url]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        main()
    fault = json.loads(capsys.readouterr().err)["error"]
    assert fault["detail"] == "There is no run unknown."
    assert fault["remedy"] == "`turnout runs list` lists all runs."


def test_a_shell_completes_ids_of_runs(
    deployment: Deployment, client: Client, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = started(deployment, run_file, "--set", "training.steps=1")["id"]
    monkeypatch.setenv("TURNOUT_API_URL", deployment.plan.api_url)
    words = {"_TURNOUT_COMPLETE": "complete_bash", "COMP_WORDS": f"turnout runs show {run_id[:-2]}", "COMP_CWORD": "3"}
    assert run_id in CliRunner().invoke(app, prog_name="turnout", env=words).stdout.split()
    monkeypatch.setenv("TURNOUT_API_URL", "http://127.0.0.1:9")
    assert CliRunner().invoke(app, prog_name="turnout", env=words).stdout.split() == []
    in_state(client, run_id, "succeeded")


def test_the_notebook_trains_watches_and_compares(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_API_URL", deployment.plan.api_url)
    notebook = nbformat.read(ROOT / "examples/notebook.ipynb", as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "commit it without outputs"
    for cell in notebook.cells:
        cell.source = cell.source.replace("STEPS = 60", "STEPS = 4")
    done = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "examples")}}).execute()
    shown = "".join(text for cell in done.cells for item in cell.get("outputs", []) for text in texts_of(item))
    assert "'succeeded', 0.25, 0.5" in shown
    assert "six &lt;b&gt;" in shown
    assert shown.count("<image/png>") == 3, "each run's plot, which is redrawn in place, and the comparison"


def texts_of(output: dict[str, Any]) -> list[str]:
    """What one output of a cell shows; of an image, its kind."""
    data = output.get("data", {})
    return ["<image/png>"] if "image/png" in data else [str(text) for text in data.values()]

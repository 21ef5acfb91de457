"""Runs on a whole deployment: real Valkey, vLLM, verifier, DeepSpeed, API and command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from services.contracts.records import Run
from services.runtime.traces import group_ids
from tests.conftest import ROOT
from tests.faults import SmallDisk, small_disk
from tests.ring.audit import Auditor
from tests.ring.chaos import Action, Chaos, ledger_faults
from tests.ring.deployment import joined, kill, notes, num_restarts, num_steps, process_of, service
from tests.ring.prometheus import Prometheus, prometheus
from tools.deployment import demo_config, deployment, finish, patiently
from turnout import Client

pytestmark = pytest.mark.timeout(900)
SMALL = {"max_questions": 8, "num_samples": 4, "every_steps": None}
ROOMY = 1 << 20
"""KiB; memory is taken only as it is used."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ring")


@pytest.fixture(scope="module")
def queue_disk(home: Path) -> Iterator[SmallDisk | None]:
    """The queue server's disk, which can be filled; None where the machine allows none of its own."""
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk(home / "queue", kibibytes=ROOMY))
        except pytest.skip.Exception:
            disk = None
        yield disk


@pytest.fixture(scope="module")
def client(home: Path, queue_disk: SmallDisk | None) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_TRACES_EXPORTER", "console")  # into the services' logs
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with deployment(home, within=[] if queue_disk is None else queue_disk.enter) as found:
            yield found


def run(client: Client, num_training_steps: int, **changes: Any) -> Run:
    training = {"steps": num_training_steps, **changes.pop("training", {})}
    return client.create_run(demo_config(training=training, evaluation=SMALL, **changes))


@pytest.fixture(scope="module")
def scraped(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A real Prometheus that scrapes the API from before the first run on."""
    with prometheus(client.url, tmp_path_factory.mktemp("prometheus")) as server:
        shown = patiently(lambda: server.query("turnout_service_up"), bool)
        assert {"api-0", "learner-0"} <= {sample["metric"]["instance"] for sample in shown}
        yield server


@pytest.fixture(scope="module")
def whole_run(client: Client, home: Path, scraped: Prometheus) -> tuple[Run, Auditor]:
    """An undisturbed run of six steps, looked at all the while. Tests only read what it has left."""
    parts = [{"kind": "row"}, {"kind": "length", "weight": 0.1}]
    started = run(client, 6, checkpoint={"every_steps": 2}, objective={"feedback": "fallback"}, rewards=parts)
    auditor = Auditor(client, home, started.id, checkpoint_groups=16, all_groups=48)

    def look() -> Run:
        auditor.look()
        return client.run(started.id)

    ended = patiently(look, lambda run: run.has_ended)
    assert (ended.state, ended.step) == ("succeeded", 6), ended.reason
    return ended, auditor


def test_a_run_goes_round_the_ring(client: Client, whole_run: tuple[Run, Auditor]) -> None:
    ended, auditor = whole_run
    assert auditor.num_looks > 10
    assert auditor.faults == []
    steps = list(client.steps(ended.id))
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert ledger_faults(client, ended.id, num_training_steps=6) == []
    first = steps[0].metrics
    assert first["staleness_max"] == 0
    assert first["logprob_mismatch_nats"] < 1e-3
    for step in steps:
        metrics = step.metrics
        assert metrics["staleness_max"] <= 1
        assert metrics["routing_ratio_grpo"] + metrics["routing_ratio_sdpo"] == pytest.approx(1)
        assert metrics["num_rollouts"] == 64
    assert any(step.metrics["routing_ratio_sdpo"] > 0 and step.metrics["teacher_entropy_nats"] > 0 for step in steps)
    assert [(item.step, item.num_questions, item.num_samples) for item in client.evaluations(ended.id)] == [
        (0, 8, 4),
        (6, 8, 4),
    ]
    newest = client.checkpoints(ended.id)[-1]
    files = {path.name for path in Path(newest.path).rglob("*")}
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= files


def test_each_group_of_the_run_left_one_trace(home: Path, whole_run: tuple[Run, Auditor]) -> None:
    ended, _ = whole_run

    def traces() -> dict[str, dict[str, Any]]:
        # The last line may be half written.
        lines = [line for log in (home / "logs").glob("*.log") for line in log.read_text().split("\n")[:-1]]
        spans = [json.loads(line) for line in lines if line.startswith('{"name"')]
        found: dict[str, dict[str, Any]] = {}
        for span in spans:
            if span["attributes"]["turnout.run_id"] == ended.id:
                found.setdefault(span["attributes"]["turnout.group_id"], {})[span["name"]] = span
        return found

    whole = {"group", "rollout", "verify", "train"}
    found = patiently(traces, lambda found: sum(found[group].keys() == whole for group in found) >= 48)
    assert set(found) == {f"train-{number}" for number in range(48)}
    for group_id, spans in found.items():
        trace_id, span_id = group_ids(ended.id, group_id)
        assert {int(span["context"]["trace_id"], 16) for span in spans.values()} == {trace_id}
        group = spans.pop("group")
        assert (int(group["context"]["span_id"], 16), group["parent_id"]) == (span_id, None)
        assert group["attributes"]["turnout.outcome"] == "trained"
        assert {int(span["parent_id"], 16) for span in spans.values()} == {span_id}
        order = [group["start_time"], *(spans[name]["start_time"] for name in ("rollout", "verify", "train"))]
        assert order == sorted(order)
        assert spans["train"]["end_time"] == group["end_time"]
    services = {span["resource"]["attributes"]["service.name"] for span in found["train-0"].values()}
    assert services == {"turnout-rollout", "turnout-verifier", "turnout-learner"}


def test_feedback_of_the_verifier_reaches_the_teacher(client: Client, whole_run: tuple[Run, Auditor]) -> None:
    """With `fallback`, failed rollouts whose group has no correct one still have teacher information."""
    ended, _ = whole_run
    [group, *_] = client.samples(ended.id, limit=5)
    taught = [sample for sample in group["samples"] if sample["route"] == "sdpo"]
    assert taught, "the policy fails often at the start"
    for sample in taught:
        solution, feedback = "Correct solution" in sample["teacher_prompt"], sample["feedback"]
        assert solution or (feedback and feedback in sample["teacher_prompt"])
    failed = [sample for sample in group["samples"] if not sample["correct"] and sample["feedback"]]
    assert all(sample["route"] == "sdpo" for sample in failed)


def test_every_panel_of_the_dashboards_shows_data(scraped: Prometheus, whole_run: tuple[Run, Auditor]) -> None:
    """Each query of each panel had samples at some moment of the run; queues are shown only during a run."""
    ended, _ = whole_run
    queries = {
        (path.stem, panel["title"], target["expr"].replace("$run", ".*"))
        for path in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
        if "turnout_judge_" not in target["expr"]  # there is no judge
    }
    assert len(queries) > 25

    def missing() -> set[tuple[str, str, str]]:
        return {query for query in queries if not scraped.query_since(ended.created_at, query[2])}

    patiently(missing, lambda found: not found)  # rates begin with the second scrape
    assert ended.id in {sample["metric"]["run_id"] for sample in scraped.query("turnout_run_info")}


def test_pause_stop_and_resume_lose_nothing(client: Client) -> None:
    started = run(client, 8, checkpoint={"every_steps": 3}, objective={"name": "advantage_mix"})
    patiently(lambda: num_steps(client, started.id), lambda number: number >= 1)
    client.pause(started.id)
    patiently(lambda: client.run(started.id).state, lambda state: state == "paused")
    client.resume(started.id)
    patiently(lambda: num_steps(client, started.id), lambda number: number >= 4)
    client.stop(started.id)
    assert finish(client, started.id).state == "stopped"
    client.resume(started.id)
    patiently(lambda: client.run(started.id).state, lambda state: state != "stopped")
    ended = finish(client, started.id)
    assert (ended.state, ended.step) == ("succeeded", 8), ended.reason
    assert ledger_faults(client, ended.id, num_training_steps=8) == []


def test_a_fork_goes_on_without_its_parent(client: Client) -> None:
    """From GRPO's second step on with SDPO and larger steps; the parent is deleted before the child has trained."""
    parent = finish(client, run(client, 2, objective={"name": "grpo"}).id)
    changes = {"objective": {"name": "sdpo"}, "training": {"steps": 4, "prompts_per_step": 10, "max_staleness": 0}}
    reply = httpx.post(f"{client.url}/v1/runs/{parent.id}/fork", json={"changes": changes}, trust_env=False)
    assert reply.status_code == 201, reply.text
    child = reply.json()
    assert child["forked_from"] == {"run_id": parent.id, "step": 2}
    client.delete(parent.id)
    ended = finish(client, child["id"])
    assert (ended.state, ended.step) == ("succeeded", 4), ended.reason
    steps = list(client.steps(ended.id))
    assert [step.step for step in steps] == [3, 4]
    assert all(step.metrics["staleness_max"] == 0 and step.metrics["num_rollouts"] == 80 for step in steps)
    assert steps[0].metrics["logprob_mismatch_nats"] < 1e-3, "the servers sample with the checkpoint's weights"
    assert [item.step for item in client.evaluations(ended.id)] == [2, 4]


def test_an_adapter_goes_round_the_ring(client: Client) -> None:
    """What the servers sample with is, after every update, the policy that the learner trains."""
    model = {"path": "examples/embedded/policy", "dtype": "float32", "lora": {"rank": 8}}
    ended = finish(
        client,
        run(
            client,
            3,
            model=model,
            objective={"reference_kl_coefficient": 0.001},
            optimizer={"learning_rate": 1e-2, "warmup_steps": 0},
            training={"max_staleness": 0},
        ).id,
    )
    assert (ended.state, ended.step) == ("succeeded", 3), ended.reason
    steps = list(client.steps(ended.id))
    assert all(step.metrics["staleness_max"] == 0 for step in steps)
    assert all(step.metrics["logprob_mismatch_nats"] < 1e-3 for step in steps)
    divergences = [step.metrics["reference_kl_nats"] for step in steps]
    assert divergences[0] < 1e-5
    assert divergences[2] > 1e-2, "the adapter changes the policy much"

    forked = client.fork(ended.id, changes={"training": {"steps": 4}, "objective": {"name": "grpo"}})
    client.delete(ended.id)
    child = finish(client, forked.id)
    assert (child.state, child.step) == ("succeeded", 4), child.reason
    [step] = client.steps(child.id)
    assert step.metrics["logprob_mismatch_nats"] < 1e-3, "the servers sample with the checkpoint's adapter"
    assert step.metrics["reference_kl_nats"] > 1e-2, "the initial model is still the one without an adapter"


def test_servers_sample_with_a_base_in_4_bits_from_the_first_step_on(client: Client) -> None:
    lora = {"rank": 8, "load_in_4bit": True}
    model = {"path": "examples/embedded/policy", "dtype": "float32", "lora": lora}
    optimizer = {"learning_rate": 1e-2, "warmup_steps": 0}
    ended = finish(client, run(client, 2, model=model, optimizer=optimizer, training={"max_staleness": 0}).id)
    assert (ended.state, ended.step) == ("succeeded", 2), ended.reason
    assert all(step.metrics["logprob_mismatch_nats"] < 1e-3 for step in client.steps(ended.id))


def test_weights_go_from_learner_to_servers_past_the_store(client: Client, home: Path) -> None:
    """By transport `nccl` over gloo, until a side dies in the middle of a version: that one comes from the store, and
    the next ones again from the learner. What is sampled is the learner's policy all along."""
    hold, held = home / "hold", home / "held"
    hold.touch()
    with joined(home, "gloo-learner", "tests.ring.gloo_learner") as learner:
        patiently(lambda: service(client, "gloo-learner"), lambda found: found and found.state == "idle")
        started = run(
            client, 6, weights={"transport": "nccl"}, training={"max_staleness": 0}, checkpoint={"every_steps": 1}
        )
        patiently(held.exists, bool)
        [program] = psutil.Process(learner.pid).children()
        program.kill()
        patiently(lambda: sent(client, started.id, "store"), lambda found: found == [1])
        held.unlink()
        patiently(held.exists, bool)
        assert kill(home, "rollout-0")
        hold.unlink()
        ended = finish(client, started.id)
        learner.terminate()
        assert learner.wait(60) == 0
    assert (ended.state, ended.step) == ("succeeded", 6), ended.reason
    assert ledger_faults(client, ended.id, num_training_steps=6) == []
    assert all(step.metrics["logprob_mismatch_nats"] < 1e-3 for step in client.steps(ended.id))
    assert sent(client, ended.id, "store") == [1]
    assert {4, 5, 6} <= set(sent(client, ended.id))
    said = [text for text in notes(client, ended.id) if "because the fast transport failed" in text]
    assert len(said) == 1
    assert "loads version 1 from the store" in said[0]


def sent(client: Client, run_id: str, transport: str = "nccl") -> list[int]:
    """Versions that servers have taken by a transport, oldest first."""
    pushes = client.weight_pushes(run_id)
    return [push.version for push in reversed(pushes) if push.transport == transport and not push.error]


def test_a_hung_engine_is_named_by_the_run_and_by_a_metric(client: Client, home: Path) -> None:
    """The engine's process is stopped while its service lives: no error shows anywhere, but the stall does. It may be
    taking new weights at that moment, and then the stall says that as well."""
    started = run(client, 1000)
    patiently(lambda: client.run(started.id), lambda run: run.step >= 2)
    service = process_of(home, "rollout-0")
    assert service is not None
    engines = service.children(recursive=True)
    assert engines
    said = (
        r"Stalled: learner-0 has waited \d+ s for \d scored groups for step \d+: "
        r"rollout server rollout-0 (is loading weights \(.+\) and )?has sampled no group for \d+ s "
        r"\(\d+ groups on prompts\)\."
    )
    for engine in engines:
        engine.suspend()
    try:
        patiently(lambda: notes(client, started.id), lambda found: any(re.fullmatch(said, text) for text in found))
        metric = rf'turnout_stall_seconds{{cause="(silent|updating)",culprit="rollout-0",run_id="{started.id}"}}'
        patiently(
            lambda: httpx.get(f"{client.url}/metrics", trust_env=False).text,
            lambda text: re.search(metric, text) is not None,
        )
    finally:
        for engine in engines:
            engine.resume()
    over = "Moving again. The stall was: learner-0 has waited"
    patiently(lambda: notes(client, started.id), lambda found: any(text.startswith(over) for text in found))
    client.stop(started.id)
    assert finish(client, started.id).state == "stopped"


def test_a_full_disk_of_the_queue_server_holds_a_run_up_and_no_more(
    client: Client, home: Path, queue_disk: SmallDisk | None
) -> None:
    """The run says what it waits for, no service dies, and it continues automatically once there is space."""
    if queue_disk is None:
        pytest.skip("a small disk needs the right to mount, or to make user namespaces")
    started = run(client, 8, checkpoint={"every_steps": 3})
    patiently(lambda: client.run(started.id), lambda run: run.step >= 2)
    names = ("api-0", "verifier-0", "rollout-0", "learner-0")
    before = [process_of(home, name) for name in names]
    queue_disk.leave_free(16)
    full = f"The queue server's disk is full: {home / 'queue'} has 0 MiB free"
    metric = f'turnout_stall_seconds{{cause="failed",culprit="queue server",run_id="{started.id}"}}'
    try:
        patiently(lambda: notes(client, started.id), lambda found: any(f"Stalled: {full}" in text for text in found))
        patiently(lambda: httpx.get(f"{client.url}/metrics", trust_env=False).text, lambda text: metric in text)
        patiently(lambda: num_restarts(home, "valkey"), lambda number: number >= 3)  # it ends at its first write
        assert client.run(started.id).state == "running"
    finally:
        queue_disk.leave_free(ROOMY)
    ended = finish(client, started.id)
    assert (ended.state, ended.step) == ("succeeded", 8), ended.reason
    assert ledger_faults(client, ended.id, num_training_steps=8) == []
    over = f"Moving again. The stall was: {full}"
    said = patiently(lambda: notes(client, started.id), lambda found: any(over in text for text in found))
    assert not any("stopped sending heartbeats" in text or "was lost" in text for text in said), said
    assert [process_of(home, name) for name in names] == before, "no service has ended"


def test_a_run_survives_the_death_of_every_service(client: Client, home: Path) -> None:
    """One SIGKILL each to learner, verifier, rollout server, API and Valkey, spread over one run; meanwhile a second
    rollout server joins, and leaves in order."""
    started = run(client, 14, checkpoint={"every_steps": 4}, rollout={"num_servers": 2})
    with closing(Chaos(client, home, started.id, num_training_steps=14)) as chaos:
        kills = [Action("kill", name) for name in ("verifier-0", "learner-0", "rollout-0", "api-0", "valkey")]
        chaos.do_all([*kills[:2], Action("join", "rollout-1"), *kills[2:4], Action("leave", "rollout-1"), kills[4]])
        assert len(chaos.done) == 7
        ended = finish(client, started.id)
    assert (ended.state, ended.step) == ("succeeded", 14), ended.reason
    assert ledger_faults(client, ended.id, num_training_steps=14) == []

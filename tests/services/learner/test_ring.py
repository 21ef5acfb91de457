"""The learner in the ring: a real Valkey, the real training program, and a scripted other side."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from redis.asyncio import Redis
from safetensors.torch import load_file

from services.contracts import events, streams
from services.contracts.messages import Rollout, ScoredGroup
from services.contracts.step_metrics import STEP_METRICS
from services.learner.checkpoint import load
from services.learner.connections.progress_pipe import EXIT_REPORTED, EXIT_TERMINATED
from services.learner.program.evaluate import stored_accuracies
from services.runtime.weights.checkpoint_files import give_checkpoint
from services.runtime.weights.store import verify
from tests.services.learner.programs import Programs
from tests.services.learner.ring import DATA, POLICY, Change, EventLog, FakeRing, put_run, run_values

MIXTURE = [
    {"path": str(DATA / "train.jsonl"), "weight": 0.7},
    {"path": str(DATA / "validation.jsonl"), "weight": 0.3, "limit": 5},
]
StartRing = Callable[..., Awaitable[FakeRing]]


@pytest.fixture
async def start_ring(redis: Redis) -> AsyncIterator[StartRing]:
    """Writes a run to Redis and starts the other side of its ring."""
    tasks: list[asyncio.Task[None]] = []

    async def start(run_id: str, values: dict[str, Any], change: Change | None = None) -> FakeRing:
        await put_run(redis, run_id, values)
        shares = bool(values["rollout"].get("share_gpu"))
        ring = FakeRing(redis, run_id, *([change] if change else []), shares_gpu=shares)
        tasks.append(asyncio.create_task(ring.run()))
        return ring

    yield start
    # A cancellation that meets a reconnecting client can be swallowed, so it is repeated.
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.5)


def tensors_of(folder: Path) -> dict[str, bytes]:
    """Bits of every tensor in a checkpoint."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        for name, tensor in load_file(path).items():
            found[f"{path.relative_to(folder)}:{name}"] = tensor.numpy().tobytes()
    return found


def checkpoint(home: Path, run_id: str, step: int) -> Path:
    return home / "runs" / run_id / "checkpoints" / f"step-{step:08d}"


LORA = {"path": str(POLICY), "dtype": "float32", "lora": {"rank": 4, "alpha": 8}}


def assert_adapters_only(home: Path, final: Path) -> None:
    """The last checkpoint and the last published version contain the same adapter, which PEFT can load."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    published = home / "runs" / "calm" / "weights" / "v00000006"
    verify(published)
    assert sorted(path.name for path in published.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    adapter = load_file(published / "adapter_model.safetensors")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(POLICY), str(final / "hf"))
    loaded = {name.replace(".default.", "."): value for name, value in model.named_parameters() if "lora_" in name}
    assert loaded.keys() == adapter.keys()
    assert all(torch.equal(loaded[name], value) for name, value in adapter.items())
    assert any(bool(value.any()) for name, value in adapter.items() if "lora_B" in name), "it has been trained"
    assert AutoTokenizer.from_pretrained(final / "hf").chat_template


@pytest.mark.parametrize(
    ("objective", "lora"),
    [("srpo", False), ("grpo", False), ("advantage_mix", False), ("srpo", True)],
)
async def test_a_run_killed_at_any_instant_ends_bit_for_bit_equal(
    valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs, start_ring: StartRing, objective: str, lora: bool
) -> None:
    """The same run twice over the same scored groups: once undisturbed, once killed in the middle and resumed."""
    staleness = {"srpo": 1, "grpo": 0, "advantage_mix": 2}[objective]
    refill = 3 if lora or objective == "grpo" else 0
    data = {"train": MIXTURE, "curriculum": None if lora else {"return_after_steps": 2}}
    plain = objective == "srpo" and not lora
    gated = {"teacher_update": "gated", "teacher_every_steps": 1} if objective == "advantage_mix" else {}
    values = run_values(
        **({"model": LORA} if lora else {}),
        objective={"name": objective, "reference_kl_coefficient": 0.01 if lora else 0.0, **gated},
        optimizer={"warmup_steps": 5},
        training={"steps": 6, "max_staleness": staleness, "prompts_per_minibatch": 2, "refill": refill},
        checkpoint={"every_steps": 3},
        **({} if plain else {"data": data}),
    )
    ring = await start_ring("calm", values)
    with programs.training(valkey_url, tmp_path, "calm") as process:
        assert await asyncio.to_thread(process.wait) == 0
    replaced = load(checkpoint(tmp_path, "calm", 6)).state.ledger["replaced"]
    assert (replaced > 0) == (refill > 0)
    assert len(ring.served) == 24 + replaced

    await redis.delete(streams.EVENTS)
    log = EventLog(redis)
    shares = objective == "grpo"  # a GPU in turns: states away and back in each step, with the same result
    await start_ring("killed", values | {"rollout": values["rollout"] | {"share_gpu": shares}})
    with programs.training(valkey_url, tmp_path, "killed") as process:
        await log.wait_for(lambda seen: any(isinstance(e, events.StepFinished) and e.step == 5 for e in seen))
        if objective == "grpo":
            os.kill(process.pid, signal.SIGTERM)
        else:
            process.kill()
        assert await asyncio.to_thread(process.wait) == (EXIT_TERMINATED if objective == "grpo" else -9)
    with programs.training(valkey_url, tmp_path, "killed") as process:
        assert await asyncio.to_thread(process.wait) == 0

    final = checkpoint(tmp_path, "calm", 6), checkpoint(tmp_path, "killed", 6)
    assert tensors_of(final[0]) == tensors_of(final[1])
    if lora:
        assert_adapters_only(tmp_path, final[0])
    states = [msgspec.structs.replace(load(path).state, run_id="") for path in final]
    assert states[0] == states[1], "ledger, curriculum and gate of the teacher"
    gate = states[0].teacher_gate
    assert (gate is not None and gate.age < 6) == bool(gated), "renewed at least once"
    assert (states[0].curriculum is None) == (objective == "srpo")
    if objective != "grpo":
        assert any("teacher" in name for name in tensors_of(final[0]))
    assert (await log.states())[-1] == "succeeded"
    assert await redis.xlen(streams.scored("killed")) == 0, "all groups are acknowledged"
    finished = {event.step: event for event in await log.of(events.StepFinished)}
    rates = [finished[step].metrics["learning_rate"] for step in range(1, 7)]
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3]), "by the step, of two updates each"
    assert sorted(finished) == [1, 2, 3, 4, 5, 6]
    assert finished[6].groups["trained"] == 24
    assert (finished[6].groups["fed"], finished[6].groups["replaced"]) == (24 + replaced, replaced)
    assert sum(event.metrics["num_replaced_groups"] for event in finished.values()) == replaced
    assert finished[6].metrics["staleness_max"] <= staleness
    assert ("seconds_turn" in finished[6].metrics) == shares


async def test_a_run_reports_steps_samples_and_evaluations(
    valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs, start_ring: StartRing
) -> None:
    values = run_values(
        data={
            "validation": [
                {"path": str(DATA / "validation.jsonl"), "name": "main"},
                {"path": str(DATA / "train.jsonl"), "name": "also", "limit": 2, "num_samples": 2, "every_steps": 2},
            ]
        },
        evaluation={"before_training": True, "after_training": True, "max_questions": 5, "num_samples": 3},
        training={"steps": 3, "max_staleness": 0},
    )
    ring = await start_ring("run", values)
    with programs.training(valkey_url, tmp_path, "run") as process:
        assert await asyncio.to_thread(process.wait) == 0
    log = EventLog(redis)
    steps = await log.of(events.StepFinished)
    assert [event.step for event in steps] == [1, 2, 3]
    assert set(steps[0].metrics) == {name for name, metric in STEP_METRICS.items() if not metric.optional}
    assert set(steps[0].histograms) == {"distillation_weight", "staleness_versions"}
    assert steps[0].metrics["routing_ratio_grpo"] + steps[0].metrics["routing_ratio_sdpo"] == pytest.approx(1.0)
    evaluations = await log.of(events.EvaluationFinished)
    found = [(event.step, event.split, event.num_questions, event.num_samples) for event in evaluations]
    main, also = ("main", 5, 3), ("also", 2, 2)
    assert found == [(0, *main), (0, *also), (2, *also), (3, *main), (3, *also)]
    accuracies = {event.step: event.accuracy for event in evaluations if event.split == "main"}
    assert await stored_accuracies(redis, "run") == accuracies, "the first set decides which checkpoints are kept"
    assert 0 < evaluations[0].accuracy < evaluations[0].pass_at_k <= 1
    published = await log.of(events.WeightsPublished)
    assert [event.version for event in published] == [1, 2, 3]
    weights = {k.decode(): v.decode() for k, v in (await redis.hgetall(streams.weights("run"))).items()}
    named = {"version": "3", "path": published[-1].path, "checksum": published[-1].checksum}
    assert weights == named | {"transfer": ""}
    verify(Path(published[-1].path), published[-1].checksum)
    samples = (await log.of(events.SamplesTaken))[0]
    assert len(samples.samples) == 4
    for sample in samples.samples:
        assert len(sample.tokens) == len(sample.behaviour_logprobs) == len(sample.logprobs)
        assert (sample.route == "sdpo") == bool(sample.teacher_prompt) == bool(sample.divergence)
    assert isinstance(samples.material, events.ReadingMaterial)
    for sample, response in zip(samples.samples, samples.material.responses, strict=True):
        assert len(response.token_ids) == len(sample.tokens)
        assert (response.told is not None) == bool(sample.teacher_prompt)
        for index in response.told.demonstrations if response.told else ():
            assert samples.material.responses[index].demonstration in sample.teacher_prompt
    assert [event.step for event in await log.of(events.CheckpointWritten)] == [2, 3]
    assert await log.states() == ["running", "succeeded"]
    # Strictly on-policy: nothing of step s was served before version s was there.
    early = [n for n in range(12) if ring.versions_seen[f"train-{n}"] != n // 4]
    assert early == []
    assert await redis.xlen(streams.evaluated("run")) == 0


async def test_a_probe_samples_without_and_with_what_the_teacher_reads_then_times_a_few_steps(
    valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs, start_ring: StartRing
) -> None:
    wording = {"teacher_solution_heading": "Hint:", "teacher_closing": ""}
    values = run_values(objective=wording, training={"steps": 2}, probe={"num_questions": 6, "planned_steps": 100})
    asked: list[str] = []

    def explain(group: ScoredGroup) -> ScoredGroup:
        asked.append(group.group.task.question.prompt)
        verdicts = [item if item.correct else msgspec.structs.replace(item, feedback="no") for item in group.verdicts]
        return msgspec.structs.replace(group, verdicts=verdicts)

    ring = await start_ring("probed", values, explain)
    with programs.training(valkey_url, tmp_path, "probed") as process:
        assert await asyncio.to_thread(process.wait) == 0
    log = EventLog(redis)
    (found,) = await log.of(events.ProbeFinished)
    assert (found.num_questions, found.num_samples) == (6, 4)
    served = Counter(name.split("-")[1] for name in ring.served if name.startswith("probe-"))
    gaps = {gap.information: gap.num_questions for gap in found.gaps}
    assert gaps == {name: served[name] for name in ("solution", "feedback", "solution_and_feedback")}
    assert gaps["solution"] == found.num_taught_questions > 0
    hinted = sum("\n\nHint:\n\n" in prompt for prompt in asked)
    assert hinted == served["solution"] + served["solution_and_feedback"], "as the run words its teacher's prompt"
    assert not any("Correct" in prompt for prompt in asked)
    assert [step.step for step in await log.of(events.StepFinished)] == [1, 2]
    assert not await log.of(events.CheckpointWritten)
    assert (await log.states())[-1] == "succeeded"


async def test_faulty_and_lost_groups_are_replaced(
    valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs, start_ring: StartRing
) -> None:
    """Groups without usable samples are dropped and replaced."""

    def disturb(group: ScoredGroup) -> ScoredGroup:
        sequence = group.group.task.sequence
        if sequence % 5 == 3:
            faulty = [Rollout(status="infrastructure_fault", fault="the engine died")] * len(group.verdicts)
            return msgspec.structs.replace(group, group=msgspec.structs.replace(group.group, rollouts=faulty))
        return group

    await start_ring("run", run_values(training={"steps": 3, "max_staleness": 1}), disturb)
    log = EventLog(redis)
    with programs.training(valkey_url, tmp_path, "run") as process:
        assert await asyncio.to_thread(process.wait) == 0
    last = (await log.of(events.StepFinished))[-1]
    assert last.groups["trained"] == 12
    assert last.groups["dropped_faulty"] == 3
    assert last.groups["fed"] == 15
    assert last.groups["in_flight"] == 0


async def test_a_run_pauses_stops_and_resumes(
    valkey_url: str,
    redis: Redis,
    tmp_path: Path,
    programs: Programs,
    start_ring: StartRing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The published weights are in memory, and are gone when the run resumes."""
    memory = tmp_path / "memory"
    monkeypatch.setenv("TURNOUT_WEIGHTS_FOLDER", str(memory))
    values = run_values(training={"steps": 400, "max_staleness": 1}, checkpoint={"every_steps": 100})
    await put_run(redis, "run", values)
    log = EventLog(redis)
    with programs.training(valkey_url, tmp_path, "run") as process:
        await log.wait_for(lambda seen: bool(seen) and getattr(seen[-1], "state", "") == "running")
        await redis.set(streams.desired("run"), "paused")  # while it waits for groups that no server samples
        await log.wait_for(lambda seen: getattr(seen[-1], "state", "") == "paused")
        await start_ring("run", values)
        await log.wait_for(lambda seen: any(isinstance(event, events.StepFinished) for event in seen))
        await redis.set(streams.desired("run"), "paused")
        await log.wait_for(lambda seen: getattr(seen[-1], "state", "") == "paused")
        await redis.set(streams.desired("run"), "running")
        await log.wait_for(lambda seen: isinstance(seen[-1], events.StepFinished))
        await redis.set(streams.desired("run"), "stopped")
        assert await asyncio.to_thread(process.wait) == 0
    assert await log.states() == ["running", "paused", "running", "paused", "running", "stopped"]
    stopped_at = (await log.of(events.StepFinished))[-1].step
    assert (await log.of(events.CheckpointWritten))[-1].step == stopped_at

    assert [path.name for path in (memory / "run").iterdir()] == [f"v{stopped_at:08d}"]
    shutil.rmtree(memory)
    await redis.set(streams.config("run"), msgspec.json.encode(values | {"training": {"steps": stopped_at + 1}}))
    values["training"]["steps"] = stopped_at + 2
    await put_run(redis, "run", values)
    with programs.training(valkey_url, tmp_path, "run") as process:
        assert await asyncio.to_thread(process.wait) == 0
    assert [event.step for event in await log.of(events.StepFinished)] == list(range(1, stopped_at + 3))
    versions = [event.version for event in await log.of(events.WeightsPublished)]
    assert versions == [*range(1, stopped_at + 1), stopped_at, stopped_at + 1, stopped_at + 2]
    assert (await log.states())[-1] == "succeeded"


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"data": {"train": "nowhere.jsonl"}}, "nowhere.jsonl cannot be read"),
        ({"data": {"train": "README.md"}}, "README.md, line 1: not valid JSON"),
        ({"model": {"path": "no/such/model"}}, "no/such/model cannot be loaded"),
        ({"data": {"train": "/etc/hostname"}}, "data.train is /etc/hostname, which is outside the folders"),
    ],
)
async def test_a_user_error_ends_the_run_with_one_sentence(
    valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs, sections: dict[str, Any], says: str
) -> None:
    await put_run(redis, "run", run_values(**sections))
    log = EventLog(redis)
    with programs.training(valkey_url, tmp_path, "run") as process:
        assert await asyncio.to_thread(process.wait) == EXIT_REPORTED
    last = (await log.of(events.RunStateChanged))[-1]
    assert last.state == "failed"
    assert says in last.reason


async def test_two_ranks_under_zero_3_train_the_same_run(
    valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs, start_ring: StartRing
) -> None:
    shared = {"steps": 3, "prompts_per_minibatch": 2, "refill": 2}
    await start_ring("one", run_values(training=shared | {"zero_stage": 0}))
    with programs.training(valkey_url, tmp_path, "one") as process:
        assert await asyncio.to_thread(process.wait) == 0
    await start_ring("two", run_values(training=shared | {"zero_stage": 3, "num_ranks": 2}))
    with programs.training(valkey_url, tmp_path, "two", num_ranks=2) as process:
        assert await asyncio.to_thread(process.wait) == 0
    folders = [checkpoint(tmp_path, run, 3) / "hf" / "model.safetensors" for run in ("one", "two")]
    first, second = (load_file(folder) for folder in folders)
    assert first.keys() == second.keys()
    difference = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert difference < 1e-4


@pytest.mark.parametrize("model", [{}, {"model": LORA}], ids=["full", "lora"])
async def test_a_fork_continues_from_the_checkpoint(
    valkey_url: str, redis: Redis, tmp_path: Path, programs: Programs, start_ring: StartRing, model: dict[str, Any]
) -> None:
    """Unchanged, it ends where its parent does, bit for bit; it may also continue with another objective and batch."""
    values = run_values(objective={"name": "grpo"}, training={"max_staleness": 0, "prompts_per_minibatch": 2}, **model)
    await start_ring("parent", values)
    with programs.training(valkey_url, tmp_path, "parent") as process:
        assert await asyncio.to_thread(process.wait) == 0
    runs = tmp_path / "runs"
    for name in ("same", "other"):
        give_checkpoint(runs / "parent", runs / name, 2)
    end = tensors_of(checkpoint(tmp_path, "parent", 4))
    beginning = tensors_of(checkpoint(tmp_path, "parent", 2))
    shutil.rmtree(runs / "parent")

    ring = await start_ring("same", values)
    with programs.training(valkey_url, tmp_path, "same") as process:
        assert await asyncio.to_thread(process.wait) == 0
    assert tensors_of(checkpoint(tmp_path, "same", 4)) == end
    assert sorted(ring.served) == sorted(f"train-{number}" for number in range(8, 16))

    await redis.delete(streams.EVENTS)
    other = run_values(
        objective={"name": "srpo", "teacher_ema_rate": 0.5, "reference_kl_coefficient": 0.01},
        data={"validation": str(DATA / "validation.jsonl")},
        evaluation={"before_training": True, "max_questions": 4, "num_samples": 2},
        optimizer={"schedule": "linear", "warmup_steps": 0},
        training={"steps": 4, "prompts_per_step": 6, "max_staleness": 0, "zero_stage": 0, "num_ranks": 1},
        **model,
    )
    ring = await start_ring("other", other)
    with programs.training(valkey_url, tmp_path, "other") as process:
        assert await asyncio.to_thread(process.wait) == 0
    log = EventLog(redis)
    published = await log.of(events.WeightsPublished)
    assert [event.version for event in published] == [2, 3, 4]
    first = tensors_of(Path(published[0].path))
    assert first == {name.removeprefix("hf/"): bits for name, bits in beginning.items() if name.startswith("hf/")}
    assert [event.step for event in await log.of(events.EvaluationFinished)] == [2]
    steps = await log.of(events.StepFinished)
    assert [event.step for event in steps] == [3, 4]
    assert [event.groups["trained"] for event in steps] == [18, 24]
    assert [event.metrics["learning_rate"] for event in steps] == pytest.approx(
        [1e-3 / 2, 1e-3 / 4]
    )  # steps 3 and 4 of 4, whatever mini-batches the parent had
    assert steps[0].metrics["staleness_max"] == 0
    assert any(event.metrics["routing_ratio_sdpo"] > 0 for event in steps)
    assert steps[0].metrics["reference_kl_nats"] > 0, "the initial model is the parent's, not the checkpoint's"
    trained = {name for name in ring.served if name.startswith("train-")}
    assert trained == {f"train-{number}" for number in range(12, 24)}
    assert any("teacher" in name for name in tensors_of(checkpoint(tmp_path, "other", 4)))

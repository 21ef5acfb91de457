"""/metrics: every promised name, correct numbers, and the same ones after a restart."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client import Histogram as PrometheusHistogram
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from services.api.container import Parts, make_parts
from services.api.live.histograms import RunningHistogram, push_histogram
from services.api.storage import history
from services.api.storage.database import open_database
from services.contracts import streams
from services.contracts.events import EvaluationFinished, Histogram, RunStateChanged, StepFinished
from services.contracts.records import WeightPush
from services.contracts.step_metrics import STEP_METRICS
from services.runtime.settings import Settings
from tests.services.api.fakes import FakeInstance, client_of, eventually, looping, served

PROMISED = [
    "routing_ratio",
    "teacher_information_ratio",
    "policy_entropy_nats",
    "teacher_entropy_nats",
    "distillation_weight",
    "reward_mean",
    "accuracy",
    "response_tokens_mean",
    "staleness_versions",
    "logprob_mismatch_nats",
    "importance_weight_truncated_ratio",
    "clip_ratio",
    "gradient_norm",
    "loss",
    "step_seconds",
    "tokens_total",
    "evaluations",
    "evaluated_questions_total",
    "evaluated_samples_total",
    "queue_depth",
    "queue_oldest_seconds",
    "groups_total",
    "weight_version",
    "weight_push_seconds",
    "verifier_seconds",
    "sandbox_violations_total",
    "stalled_seconds",
]


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a page: (name, labels) to value. Fails if the page does not parse."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


async def filled(parts: Parts, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """A run with two steps, an evaluation and two pushes."""
    run_id = str((await client.post("/v1/runs", json=body)).json()["id"])
    weights = Histogram(edges=[0.0, 0.5, 1.0, 2.0], counts=[1, 2, 3], total=6.0)
    ages = Histogram(edges=[0.0, 1.0, 2.0], counts=[5, 1], total=1.0)
    await parts.journal.store(
        [
            RunStateChanged(run_id=run_id, at=1.0, state="starting"),
            RunStateChanged(run_id=run_id, at=2.0, state="running"),
            *(
                StepFinished(
                    run_id=run_id,
                    at=2.0 + step,
                    step=step,
                    metrics={name: float(step) for name in STEP_METRICS},
                    histograms={"distillation_weight": weights, "staleness_versions": ages},
                    groups={"fed": 8 * step, "trained": 4 * step, "in_flight": 3, "dropped_stale": 1},
                )
                for step in (1, 2)
            ),
            EvaluationFinished(
                run_id=run_id,
                at=9.0,
                step=2,
                split="validation",
                num_questions=4,
                num_samples=16,
                accuracy=0.25,
                pass_at_k=0.5,
            ),
        ]
    )
    for error, seconds in (("", 0.3), ("refused", 1.0)):
        push = WeightPush(
            run_id=run_id, version=1, instance="r", at=1.0, seconds=seconds, error=error, transport="store"
        )
        parts.board.on_push(push)
        async with parts.database.write() as session:
            await history.store(session, push)
    return run_id


async def test_every_promised_name_is_there_from_the_start(parts: Parts, client: httpx.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    for name in PROMISED:
        assert f"# TYPE turnout_{name} " in text, name


async def test_numbers_of_a_run(parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    run = await filled(parts, client, run_body)
    found = samples((await client.get("/metrics")).text)
    assert found[key("turnout_reward_mean", run_id=run)] == 2.0
    assert found[key("turnout_routing_ratio", run_id=run, branch="sdpo")] == 2.0
    assert found[key("turnout_loss", run_id=run, branch="grpo")] == 2.0
    assert found[key("turnout_step_seconds", run_id=run, phase="teacher")] == 2.0
    assert found[key("turnout_accuracy", run_id=run, split="validation", samples="16")] == 0.25
    assert found[key("turnout_groups_total", run_id=run, outcome="fed")] == 16
    assert found[key("turnout_groups_total", run_id=run, outcome="dropped_stale")] == 1
    assert found[key("turnout_distillation_weight_bucket", run_id=run, le="0.5")] == 2
    assert found[key("turnout_distillation_weight_bucket", run_id=run, le="1.0")] == 6
    assert found[key("turnout_distillation_weight_bucket", run_id=run, le="+Inf")] == 12
    assert found[key("turnout_distillation_weight_count", run_id=run)] == 12
    assert found[key("turnout_distillation_weight_sum", run_id=run)] == 12.0
    assert found[key("turnout_staleness_versions_count", run_id=run)] == 12
    assert found[key("turnout_weight_push_seconds_count", run_id=run)] == 1
    assert found[key("turnout_weight_push_failures_total", run_id=run)] == 1
    assert found[key("turnout_run_state", run_id=run, state="running")] == 1


async def test_two_runs_do_not_mix(parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    first, second = await filled(parts, client, run_body), await filled(parts, client, run_body)
    again = StepFinished(run_id=second, at=99.0, step=3, metrics={"reward_mean": 0.125})
    await parts.journal.store([again])
    found = samples((await client.get("/metrics")).text)
    assert found[key("turnout_reward_mean", run_id=first)] == 2.0
    assert found[key("turnout_reward_mean", run_id=second)] == 0.125


async def test_a_restart_shows_the_same(
    settings: Settings, parts: Parts, client: httpx.AsyncClient, redis: Redis, run_body: dict[str, Any]
) -> None:
    run = await filled(parts, client, run_body)
    before = {name: value for name, value in samples((await client.get("/metrics")).text).items() if _of(name, run)}
    again = make_parts(settings, redis, await open_database(settings))
    async with client_of(again) as other:
        await again.board.rebuild(again.database)
        after = {name: value for name, value in samples((await other.get("/metrics")).text).items() if _of(name, run)}
    assert len(before) > 40
    assert after == before
    await again.close()


def _of(name: tuple[str, frozenset[tuple[str, str]]], run_id: str) -> bool:
    return ("run_id", run_id) in name[1]


async def test_services_queues_and_verifiers(
    parts: Parts, client: httpx.AsyncClient, redis: Redis, learner: FakeInstance, run_body: dict[str, Any]
) -> None:
    verifier_app = FastAPI()
    registry = CollectorRegistry()
    PrometheusHistogram("turnout_verifier_seconds", "-", ["kind"], registry=registry).labels("mcq").observe(0.25)
    Counter("turnout_sandbox_violations", "-", ["reason"], registry=registry).labels("network").inc(3)
    Counter("turnout_other", "-", registry=registry).inc()
    verifier_app.get("/metrics")(lambda: Response(generate_latest(registry), media_type="text/plain"))
    server = FakeInstance(redis, "rollout", "rollout-0")
    server.tokens_total, server.weight_version = 77, 4
    await server.publish()
    await FakeInstance(redis, "verifier", "verifier-dead").publish()
    await FakeInstance(redis, "verifier", "verifier-odd", "http://no:port").publish()
    await redis.set(streams.service("verifier-of-tomorrow"), b'{"kind": "verifier", "brand_new": 1}')
    async with looping(parts), served(verifier_app) as url:
        await FakeInstance(redis, "verifier", "verifier-0", url).publish()
        run_id = (await client.post("/v1/runs", json=run_body)).json()["id"]
        await eventually(learner.assignment)
        learner.run_id, learner.waiting_for, learner.waiting_since = run_id, "3 of 8 groups", time.time() - 50
        await learner.publish()
        await redis.xadd(streams.prompts(run_id), {"m": b"x"}, id=f"{int((time.time() - 30) * 1000)}-0")

        async def found() -> dict[Any, float]:
            return samples((await client.get("/metrics")).text)

        async def complete() -> bool:
            have = await found()
            return (
                have.get(key("turnout_queue_depth", run_id=run_id, stream="prompts")) == 1
                and key("turnout_verifier_seconds_count", kind="mcq", instance="verifier-0") in have
                and any(name == "turnout_stalled_seconds" for name, _ in have)
            )

        await eventually(complete)
        have = await found()
    assert not parts.status.faults
    assert have[key("turnout_queue_oldest_seconds", run_id=run_id, stream="prompts")] >= 29
    assert have[key("turnout_tokens_total", service="rollout", instance="rollout-0")] == 77
    assert have[key("turnout_weight_version", run_id="", service="rollout", instance="rollout-0")] == 4
    assert have[key("turnout_stalled_seconds", run_id=run_id, service="learner", waiting_for="n of n groups")] >= 50
    assert have[key("turnout_sandbox_violations_total", reason="network", instance="verifier-0")] == 3
    assert not any(name.startswith("turnout_other") for name, _ in have)


def test_running_histogram() -> None:
    running = RunningHistogram()
    assert running.buckets() == [("+Inf", 0.0)]
    running.add(Histogram(edges=[0.0, 1.0], counts=[2, 3], total=1.0))  # lengths that do not match
    assert running.edges == []
    running.add(Histogram(edges=[0.0, 1.0, 2.0], counts=[2, 3], total=4.0))
    running.add(Histogram(edges=[0.0, 1.0, 4.0], counts=[1, 1], total=1.0))  # other edges reset it
    assert (running.buckets(), running.total) == ([("1.0", 1.0), ("+Inf", 2.0)], 1.0)


@pytest.mark.parametrize(
    ("value", "bound"), [(0.0, "0.05"), (0.05, "0.05"), (0.06, "0.1"), (250.0, "300.0"), (1e12, "+Inf")]
)
def test_a_push_lands_in_its_bucket(value: float, bound: str) -> None:
    histogram = push_histogram()
    histogram.observe(value)
    below = [name for name, count in histogram.buckets() if count == 1]
    assert below[0] == bound

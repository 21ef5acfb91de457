"""Probes over REST: a run that measures, and its report once it has."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from services.api.container import Parts
from services.contracts.events import ProbeFinished, StepFinished
from tests.unit.contracts.test_probe import GOOD


async def test_a_probe_is_a_short_run_whose_report_has_advice(
    parts: Parts, client: httpx.AsyncClient, run_body: dict[str, Any]
) -> None:
    made = await client.post("/v1/probes?num_questions=5&steps=2", json=run_body)
    assert made.status_code == 201, made.text
    run = made.json()
    assert made.headers["location"] == f"/v1/runs/{run['id']}"
    assert run["config"]["probe"] == {"num_questions": 5, "planned_steps": run_body["training"]["steps"]}
    assert run["num_steps"] == 2
    early = await client.get(f"/v1/probes/{run['id']}")
    assert (early.status_code, early.json()["detail"]) == (
        409,
        "The probe has not sampled its questions yet; its run is queued.",
    )
    fields = {name: getattr(GOOD, name) for name in GOOD.__struct_fields__} | {"run_id": run["id"]}
    steps = [StepFinished(run_id=run["id"], at=0.0, step=step, metrics={"seconds": 2.0}) for step in (1, 2)]
    await parts.journal.store([ProbeFinished(**fields), *steps])
    found = (await client.get(f"/v1/probes/{run['id']}")).json()
    assert found["result"]["accuracy"] == GOOD.accuracy
    assert found["teacher_gap"] == pytest.approx(0.3)
    assert found["seconds_per_step"] == 2.0
    assert found["advice"]


async def test_a_run_that_trains_is_not_a_probe(client: httpx.AsyncClient, run_body: dict[str, Any]) -> None:
    run = (await client.post("/v1/runs", json=run_body)).json()
    reply = await client.get(f"/v1/probes/{run['id']}")
    assert (reply.status_code, reply.json()["field"]) == (404, "run_id")

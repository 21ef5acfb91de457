"""What the OpenAPI document cannot express about a valid request: which files exist, which fields go together.

Schemathesis makes requests from the document alone, so a valid one may name a model that does not exist or a cursor
that the API never returned. These hooks put real ones in their place, but only in requests that are meant to be valid.
"""

from __future__ import annotations

import secrets
from typing import Any

import schemathesis

MODEL = "examples/embedded/policy"
DATA = "examples/embedded/data/train.jsonl"
VALID_EXPERIMENT: dict[str, Any] = {
    "name": "one run",
    "run": {"model": {"path": MODEL}, "data": {"train": DATA, "validation": DATA}, "training": {"steps": 1}},
    "methods": {"srpo": {}},
    "final": {"seeds": [1]},
}
"""An experiment contains parts of run files, which the document cannot describe."""


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    query = case.query if isinstance(case.query, dict) else {}
    if case.operation.path.endswith("/events"):
        query["follow"] = "false"  # otherwise the response never ends
        case.query = query
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    query.pop("cursor", None)
    if "config" in query:
        query["config"] = ["training.steps=3"]  # the document cannot say what a field or value looks like
    if case.headers and "idempotency-key" in case.headers:
        case.headers["idempotency-key"] = secrets.token_hex(8)  # a key that was seen before belongs to another request
    if case.operation.path in ("/v1/runs", "/v1/probes") and isinstance(case.body, dict):
        case.body = valid_run(case.body)
    if case.operation.path == "/v1/experiments" and isinstance(case.body, dict):
        case.body = VALID_EXPERIMENT
    if case.operation.path == "/v1/evaluations" and isinstance(case.body, dict):
        case.body = {"model": {"path": MODEL}, "data": {"validation": DATA}}
    if case.operation.path.endswith("/fork") and isinstance(case.body, dict):
        case.body = {**case.body, "changes": {"training": {"steps": 2**20}}}


def valid_run(body: dict[str, Any]) -> dict[str, Any]:
    """`body` with files that exist and without combinations that cannot work (`RunConfig.cross_check`)."""
    run = {**body, "preset": None}
    run["model"] = {"path": MODEL}
    run["data"] = {**run["data"], "train": DATA, "validation": None, "curriculum": None}
    run["evaluation"] = {**run.get("evaluation", {}), "every_steps": None}
    run["objective"] = {"name": run.get("objective", {}).get("name", "srpo")}
    training = {**run["training"], "prompts_per_minibatch": None, "refill": 0}
    training["max_staleness"] = max(1, training.get("max_staleness", 1))
    rollout = {**run.get("rollout", {})}
    rollout["group_size"] = max(2, rollout.get("group_size", 8))
    rollout["tensor_parallel_size"] = 1  # the embedded policy has three attention heads
    rollout["temperature"] = rollout.get("temperature") or 1.0
    return {**run, "training": training, "rollout": rollout}

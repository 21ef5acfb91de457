"""What the OpenAPI document cannot express about a valid request: which files exist, which fields go together.

Schemathesis makes requests from the document alone, so a valid one may name a model that does not exist or a cursor
that the API never returned. These hooks put real ones in their place, but only in requests that are meant to be valid.

The coverage phase makes one request for each value of each field of each body: 5,300, most of which repeat another one.
Of those that differ in nothing that the API reads, one is sent (`filter_case`).
"""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Hashable
from typing import Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.meta import CoveragePhaseData, TestPhase

MODEL = "examples/embedded/policy"
SERVING = ("/v1/chat/completions", "/v1/completions")
DATA = "examples/embedded/data/train.jsonl"
VALID_EXPERIMENT: dict[str, Any] = {
    "name": "one run",
    "run": {"model": {"path": MODEL}, "data": {"train": DATA, "validation": DATA}, "training": {"steps": 1}},
    "methods": {"srpo": {}},
    "final": {"seeds": [1]},
}
"""An experiment contains parts of run files, which the document cannot describe."""


SENT: set[Hashable] = set()
"""What the coverage phase has sent."""


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Whether a case of the coverage phase says something new.

    A valid one does if no other becomes the same request (`valid_body`). An invalid one does if it is the first of its
    kind: each bound of each field is a kind, but six values of a wrong type are one. A run file is tried on one path.
    """
    if case.meta is None or case.meta.phase.name is not TestPhase.COVERAGE:
        return True
    assert isinstance(case.meta.phase.data, CoveragePhaseData)
    what = case.meta.phase.data
    of_body = what.parameter_location is ParameterLocation.BODY
    path = "/v1/runs" if of_body and case.path == "/v1/probes" else case.path
    key: Hashable
    if case.meta.generation.mode.is_positive:
        body = valid_body(case.operation.path, copy.deepcopy(case.body))
        others = [] if of_body else [case.path_parameters, case.query, case.headers]
        key = json.dumps([body, *others], sort_keys=True, default=repr)
    else:
        key = what.scenario, what.parameter_location, what.parameter, what.description
    new = (path, case.method, key) not in SENT
    SENT.add((path, case.method, key))
    return new


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    query = case.query if isinstance(case.query, dict) else {}
    if case.operation.path.endswith("/events"):
        query["follow"] = "false"  # otherwise the response never ends
        case.query = query
    if case.operation.path in SERVING and isinstance(case.body, dict) and case.body.get("model") == MODEL:
        case.body["model"] = "no-such-run"  # this one would be loaded, but no rollout server is alive
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    query.pop("cursor", None)
    if "config" in query:
        query["config"] = ["training.steps=3"]  # the document cannot say what a field or value looks like
    if case.headers and "idempotency-key" in case.headers:
        case.headers["idempotency-key"] = secrets.token_hex(8)  # a key that was seen before belongs to another request
    case.body = valid_body(case.operation.path, case.body)


def valid_body(path: str, body: Any) -> Any:
    """`body`, which is valid by the document, so that it is valid in fact."""
    if not isinstance(body, dict):
        return body
    if path in ("/v1/runs", "/v1/probes"):
        return valid_run(body)
    if path == "/v1/experiments":
        return VALID_EXPERIMENT
    if path == "/v1/evaluations":
        return {"model": {"path": MODEL}, "data": {"validation": DATA}}
    if path.endswith("/fork"):
        return {**body, "changes": {"training": {"steps": 2**20}}}
    return body


def valid_run(body: dict[str, Any]) -> dict[str, Any]:
    """`body` with files that exist and without combinations that cannot work (`RunConfig.cross_check`)."""
    run = {**body, "preset": None}
    run["model"] = {"path": MODEL}
    run["data"] = {**run["data"], "train": DATA, "validation": None, "curriculum": None}
    run["evaluation"] = {**run.get("evaluation", {}), "every_steps": None}
    run["objective"] = {"name": run.get("objective", {}).get("name", "srpo")}
    training = {**run["training"], "prompts_per_minibatch": None, "refill": 0, "offload_optimizer": False}
    training["max_staleness"] = max(1, training.get("max_staleness", 1))
    run["rewards"] = []  # kinds take different fields
    rollout = {**run.get("rollout", {})}
    rollout["group_size"] = max(2, rollout.get("group_size", 8))
    rollout["tensor_parallel_size"] = 1  # the embedded policy has three attention heads
    rollout["share_gpu"] = False  # only strictly on-policy
    rollout["temperature"] = rollout.get("temperature") or 1.0
    return {**run, "training": training, "rollout": rollout}

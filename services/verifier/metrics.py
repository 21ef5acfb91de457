"""Prometheus metrics of the verifier."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

SECONDS: Final = Histogram(
    "turnout_verifier_seconds",
    "Time to judge one rollout, waiting for a worker included, in seconds.",
    ["kind"],
    buckets=(0.0001, 0.001, 0.01, 0.1, 0.3, 1, 3, 10, 30, 100),
)
GROUPS: Final = Counter(
    "turnout_verifier_groups",
    "Groups judged, by outcome: scored, evaluated or taken_over (another verifier was first).",
    ["run_id", "outcome"],
)
VERDICTS: Final = Counter(
    "turnout_verdicts", "Rollouts judged, by outcome: correct, wrong or infrastructure_fault.", ["kind", "outcome"]
)
VIOLATIONS: Final = Counter(
    "turnout_sandbox_violations", "Things that a sandboxed program tried and was refused.", ["reason"]
)
LAYER: Final = Gauge("turnout_sandbox_layer", "1 for each layer of the sandbox that is in force.", ["layer"])

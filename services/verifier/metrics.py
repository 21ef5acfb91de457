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
JUDGE_REQUESTS: Final = Counter(
    "turnout_judge_requests",
    "Requests to the judge model, by outcome: answered, unreadable (an answer without a verdict), busy (429), failed, "
    "refused.",
    ["outcome"],
)
JUDGE_TOKENS: Final = Counter(
    "turnout_judge_tokens", "Tokens of requests to the judge model, as it counts them: prompt, response.", ["kind"]
)
JUDGE_VERDICTS: Final = Counter(
    "turnout_judge_verdicts",
    "Verdicts of the judge model, by source: asked, or cached from an earlier one.",
    ["source"],
)
JUDGE_SECONDS: Final = Histogram(
    "turnout_judge_request_seconds",
    "Time of one answer of the judge model, in seconds.",
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300),
)

"""Prometheus metrics of a rollout server."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

WEIGHT_VERSION = Gauge("turnout_weight_version", "Verified weight version in use.", ["service", "instance"])
GROUPS = Counter("turnout_rollout_groups_total", "Groups sampled and published.", ["purpose"])
FAULTS = Counter("turnout_rollout_faults_total", "Rollouts that ended as an infrastructure fault.")
GENERATION_SECONDS = Histogram(
    "turnout_generation_seconds",
    "Time from taking a group to its last token.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000),
)
ENGINE_STARTS = Counter("turnout_engine_starts_total", "Engines built, the first one included.")
ENGINE_START_SECONDS = Gauge("turnout_engine_start_seconds", "Time that the last engine took to start.")
SERVED_REQUESTS = Counter(
    "turnout_served_requests_total", "Requests to the policy that were answered.", ["endpoint", "status"]
)
SERVED_TOKENS = Counter("turnout_served_tokens_total", "Tokens of served prompts and responses.", ["kind"])
SERVED_RUNNING = Gauge("turnout_served_running", "Served prompts that the engine is sampling for.")
SERVED_WAITING = Gauge("turnout_served_waiting", "Served prompts that wait for a sequence of their share.")

"""Writes the Grafana dashboards from the tables below, so that people review tables and not JSON.

python deploy/grafana/make_dashboards.py          # write deploy/grafana/dashboards/*.json
python deploy/grafana/make_dashboards.py --check  # exit 1 where they are not what the tables say
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "turnout-prometheus"}
RUN = 'run_id=~"$run"'


@dataclass(frozen=True)
class Panel:
    """One panel: its queries with legends, its unit, and how to read it."""

    title: str
    queries: tuple[tuple[str, str], ...]
    text: str
    unit: str = "none"
    kind: str = "timeseries"


def gauge(name: str, legend: str = "{{run_id}}") -> tuple[tuple[str, str], ...]:
    return ((f"turnout_{name}{{{RUN}}}", legend),)


def quantiles(name: str, by: str = "run_id", scope: str = RUN) -> tuple[tuple[str, str], ...]:
    """Median and 95th percentile of a histogram over five minutes."""
    inner = f"sum by ({by}, le) (rate(turnout_{name}_bucket{{{scope}}}[5m]))"
    return tuple((f"histogram_quantile({q}, {inner})", f"{{{{{by}}}}} p{round(q * 100)}") for q in (0.5, 0.95))


DASHBOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "training": (
        "Turnout: training",
        (
            Panel(
                "Reward",
                gauge("reward_mean"),
                "Mean reward of each step. Should rise. Flat: groups all alike; look at samples, or raise the "
                "learning rate.",
            ),
            Panel(
                "Accuracy",
                gauge("accuracy", "{{run_id}} {{split}} avg@{{samples}}"),
                "Evaluations (validation) and each step's rollouts (train). A gap that widens is overfitting.",
                "percentunit",
            ),
            Panel(
                "Loss",
                gauge("loss", "{{run_id}} {{branch}}"),
                "The objective and its two branches. Its size says little; NaN or a jump: see Gradient norm.",
            ),
            Panel(
                "Policy entropy",
                gauge("policy_entropy_nats"),
                "Nats a token. Near 0 is collapse: lower the learning rate, or fork from an earlier checkpoint.",
            ),
            Panel(
                "Response length",
                gauge("response_tokens_mean"),
                "Tokens. GRPO tends to lengthen, SDPO to shorten. Near max_response_tokens: replies are cut and "
                "count as failed.",
            ),
            Panel(
                "Gradient norm",
                gauge("gradient_norm"),
                "Before clipping. Spikes: look at mismatch and truncated weights; if they stay, lower the learning "
                "rate.",
            ),
            Panel(
                "Step time by phase",
                gauge("step_seconds", "{{phase}}"),
                "Mostly waiting: add rollout servers. Mostly training: add ranks.",
                "s",
            ),
            Panel(
                "Step",
                gauge("step"),
                "Training steps finished. Flat while the run is running: see Stalls in services and queues.",
            ),
        ),
    ),
    "routing": (
        "Turnout: routing and self-distillation",
        (
            Panel(
                "Routing shares",
                gauge("routing_ratio", "{{run_id}} {{branch}}"),
                "SDPO's share starts high and falls as failures become fewer. Stuck high: demonstrations do not help.",
                "percentunit",
            ),
            Panel(
                "Teacher information",
                gauge("teacher_information_ratio"),
                "Share of rollouts with a correct sibling or feedback. Near 0: the task is too hard to distil.",
                "percentunit",
            ),
            Panel(
                "Teacher entropy",
                gauge("teacher_entropy_nats"),
                "Nats over distilled tokens. Rising: the teacher is less sure, and the weights matter more. Above "
                "the policy: the demonstrations do not help it; read samples.",
            ),
            Panel(
                "Distillation weight",
                quantiles("distillation_weight"),
                "Mean is 1 by construction; a wide spread means that few tokens carry the correction. Too few: "
                "lower objective.beta.",
            ),
        ),
    ),
    "asynchrony": (
        "Turnout: asynchrony",
        (
            Panel(
                "Staleness",
                quantiles("staleness_versions"),
                "Age of trained tokens in versions; max_staleness bounds it. Always at the bound: rollout runs "
                "ahead of the learner.",
            ),
            Panel(
                "Log-prob mismatch",
                gauge("logprob_mismatch_nats"),
                "Mean |learner - behaviour|. Off-policy age and numerics; above 0.1 check dtype and temperature.",
            ),
            Panel(
                "Truncated importance weights",
                gauge("importance_weight_truncated_ratio"),
                "Share of tokens at the cap. Rising: lower max_staleness.",
                "percentunit",
            ),
            Panel(
                "Clipped ratios",
                gauge("clip_ratio"),
                "Share of GRPO tokens outside the clip range. Above a few percent: lower the learning rate.",
                "percentunit",
            ),
            Panel(
                "Weight version",
                (("turnout_weight_version", "{{instance}}"),),
                "Rollout servers should follow the learner closely. One that stays behind: see Failed weight pushes "
                "and its log.",
            ),
            Panel(
                "Weight push",
                quantiles("weight_push_seconds"),
                "Time to new, verified weights on a server. Sampling waits meanwhile; seconds of a step or more: "
                "see Performance.",
                "s",
            ),
            Panel(
                "Failed weight pushes",
                ((f"increase(turnout_weight_push_failures_total{{{RUN}}}[5m])", "{{run_id}}"),),
                "In five minutes; 0 is right. Each is tried again; many: read the rollout server's log.",
            ),
            Panel(
                "Groups",
                ((f"sum by (outcome) (rate(turnout_groups_total{{{RUN}}}[1m]))", "{{outcome}}"),),
                "A second. Dropped for staleness: rollout is too slow for max_staleness.",
            ),
        ),
    ),
    "services": (
        "Turnout: services and queues",
        (
            Panel(
                "Instances",
                (("turnout_service_up", "{{instance}} {{state}}"),),
                "1 for every living instance, with its state. One that is missing has died: read logs/<instance>.log.",
                kind="stat",
            ),
            Panel(
                "Tokens a second",
                (("sum by (service) (rate(turnout_tokens_total[1m]))", "{{service}}"),),
                "All three follow the slowest one; the one with the fullest queue before it is that one.",
            ),
            Panel(
                "Queue depth",
                gauge("queue_depth", "{{stream}}"),
                "A queue that grows names the service that is too slow.",
            ),
            Panel(
                "Oldest message",
                gauge("queue_oldest_seconds", "{{stream}}"),
                "`scored` holds groups until the next checkpoint; that is normal.",
                "s",
            ),
            Panel(
                "Waiting",
                gauge("stalled_seconds", "{{service}}: {{waiting_for}}"),
                "Present waits. Waits shorter than a step are normal; long ones show who is idle, Stalls says "
                "because of whom.",
                "s",
            ),
            Panel(
                "Stalls",
                ((f"turnout_stall_seconds{{{RUN}}} or vector(0)", "{{run_id}} {{culprit}} {{cause}}"),),
                "0 is right. How long a run has not moved, and whose fault it is: read that service's log, restart it.",
                "s",
            ),
            Panel(
                "Out of rotation",
                gauge("server_out_of_rotation", "{{instance}}"),
                "1: the server failed to take weights and does not sample. The API tries again; if it stays, "
                "restart the server.",
            ),
        ),
    ),
    "verifier": (
        "Turnout: verifier and sandbox",
        (
            Panel(
                "Time a verdict",
                quantiles("verifier_seconds", "kind", 'kind!=""'),
                "By kind of task. A slow kind may need more verifiers.",
                "s",
            ),
            Panel(
                "Verdicts a second",
                (("sum by (kind) (rate(turnout_verifier_seconds_count[1m]))", "{{kind}}"),),
                "Rollouts judged a second, by kind of task. Falls while completions wait: the verifier is the slow "
                "part.",
            ),
            Panel(
                "Sandbox violations",
                (("sum by (reason) (increase(turnout_sandbox_violations_total[5m])) or vector(0)", "{{reason}}"),),
                "Forbidden attempts of model-written code, all stopped. A rise may be reward hacking: read samples.",
            ),
        ),
    ),
}


def panel_json(panel: Panel, number: int) -> dict[str, Any]:
    """Grafana's form of one panel; two panels stand side by side."""
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}} if panel.kind == "timeseries" else {},
        "targets": [
            {"refId": chr(65 + index), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }


def dashboard_json(name: str) -> str:
    """One dashboard file."""
    title, panels = DASHBOARDS[name]
    query = "label_values(turnout_run_info, run_id)"
    variable = {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "run"},
        "definition": query,
        "refresh": 2,
        "sort": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
    board = {
        "uid": f"turnout-{name}",
        "title": title,
        "tags": ["turnout"],
        "schemaVersion": 41,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "links": [
            {"type": "dashboards", "tags": ["turnout"], "title": "Turnout", "asDropdown": True, "keepTime": True}
        ],
        "templating": {"list": [variable]},
        "panels": [panel_json(panel, number) for number, panel in enumerate(panels)],
    }
    return json.dumps(board, indent=1) + "\n"


def main() -> int:
    """Write or check the files; the exit code says whether they were right."""
    FOLDER.mkdir(exist_ok=True)
    wrong = [name for name in DASHBOARDS if not _same(FOLDER / f"{name}.json", dashboard_json(name))]
    if "--check" in sys.argv:
        if wrong:
            print(f"Not what the tables say: {', '.join(wrong)}. Run deploy/grafana/make_dashboards.py and commit.")
        return int(bool(wrong))
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(dashboard_json(name))
    return 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())

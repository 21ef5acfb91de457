"""Every Redis key that the platform uses, and who writes and reads it.

| key | type | written by | read by |
|---|---|---|---|
| `turnout:{run}:prompts` | stream | learner (feeder) | rollout servers, group `rollout` |
| `turnout:{run}:completions` | stream | rollout servers | verifiers, group `verifier` |
| `turnout:{run}:scored` | stream | verifiers | learner, group `learner` |
| `turnout:{run}:evaluated` | stream | verifiers | learner, group `learner` |
| `turnout:{run}:dead` | stream | anyone who could not read a message | people |
| `turnout:{run}:feeder` | hash | learner | learner, API |
| `turnout:{run}:config` | string (JSON) | API | all |
| `turnout:{run}:desired` | string (`DesiredState`) | API | learner |
| `turnout:{run}:attempt` | string: changes each time that the run is queued | API | learner |
| `turnout:{run}:weights` | hash version, path, checksum, transfer | learner | API, rollout servers |
| `turnout:runs` | set of run ids that are assigned | API | verifiers |
| `turnout:events` | stream | learner, all services | API, group `api` |
| `turnout:service:<instance>` | string (JSON `ServiceRecord`), expires | the service | API |
| `turnout:roll-call` | string, expires: whether writes are taken | API | nobody |
| `turnout:assignment:<instance>` | string: a run id | API | that service |

The run id in braces is a Redis Cluster hash tag: all keys of one run live on one node, so a message can be published
and its predecessor acknowledged in one transaction.
"""

from __future__ import annotations

EVENTS = "turnout:events"
RUNS = "turnout:runs"
ROLL_CALL = "turnout:roll-call"
GROUP_ROLLOUT = "rollout"
GROUP_VERIFIER = "verifier"
GROUP_LEARNER = "learner"
GROUP_API = "api"


def prompts(run_id: str) -> str:
    return f"turnout:{{{run_id}}}:prompts"


def completions(run_id: str) -> str:
    return f"turnout:{{{run_id}}}:completions"


def scored(run_id: str) -> str:
    return f"turnout:{{{run_id}}}:scored"


def evaluated(run_id: str) -> str:
    return f"turnout:{{{run_id}}}:evaluated"


def dead(run_id: str) -> str:
    return f"turnout:{{{run_id}}}:dead"


def feeder(run_id: str) -> str:
    return f"turnout:{{{run_id}}}:feeder"


def config(run_id: str) -> str:
    return f"turnout:{{{run_id}}}:config"


def desired(run_id: str) -> str:
    return f"turnout:{{{run_id}}}:desired"


def attempt(run_id: str) -> str:
    return f"turnout:{{{run_id}}}:attempt"


def weights(run_id: str) -> str:
    return f"turnout:{{{run_id}}}:weights"


def service(instance: str) -> str:
    return f"turnout:service:{instance}"


def assignment(instance: str) -> str:
    return f"turnout:assignment:{instance}"


def run_keys(run_id: str) -> list[str]:
    """Every key of one run: what deleting a run removes."""
    makers = (prompts, completions, scored, evaluated, dead, feeder, config, desired, attempt, weights)
    return [make(run_id) for make in makers]

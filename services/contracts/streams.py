"""Every Redis key that the platform uses, and who writes and reads it.

| key | type | written by | read by |
|---|---|---|---|
| `turnout:{run}:prompts` | stream | learner (feeder) | rollout servers, group `rollout` |
| `turnout:{run}:completions` | stream | rollout servers | verifiers, group `verifier` |
| `turnout:{run}:scored` | stream | verifiers | learner, group `learner` |
| `turnout:{run}:evaluated` | stream | verifiers | learner, group `learner` |
| `turnout:{run}:dead` | stream | a service that could not read or handle a message | people, learner |
| `turnout:{run}:feeder` | hash | learner | learner, API |
| `turnout:{run}:config` | string (JSON) | API | all |
| `turnout:{run}:desired` | string (`DesiredState`) | API | learner |
| `turnout:{run}:attempt` | string: changes each time that the run is queued | API | learner |
| `turnout:{run}:weights` | hash version, path, checksum, transfer | learner | API, rollout servers |
| `turnout:{run}:turn` | hash wanted, asleep (`turns`) | learner, rollout server | rollout server, learner |
| `turnout:runs` | set of run ids that are assigned | API | verifiers |
| `turnout:events` | stream | learner, all services | API, group `api` |
| `turnout:service:<instance>` | string (JSON `ServiceRecord`), expires | the service | API |
| `turnout:kept:{judgements}:*` | hash: digest of a request to a judge, verdict | verifiers | verifiers |
| `turnout:roll-call` | string, expires: whether writes are taken | API | none |
| `turnout:training` | string, expires: ids of the machines on which a run trains | API | rollout servers |
| `turnout:assignment:<instance>` | string: a run id | API | that service |

`queue_users` says what each service may do with them. A new key, or another command on a key, needs a rule there.

The run id in braces is a Redis Cluster hash tag: all keys of a run are on one node, so a message can be published
and its predecessor acknowledged in one transaction.
"""

from __future__ import annotations

import re

from services.contracts.errors import MalformedMessageError

EVENTS = "turnout:events"
RUNS = "turnout:runs"
ROLL_CALL = "turnout:roll-call"
TRAINING = "turnout:training"
JUDGEMENTS = ("turnout:kept:{judgements}:newer", "turnout:kept:{judgements}:older")
GROUP_ROLLOUT = "rollout"
GROUP_VERIFIER = "verifier"
GROUP_LEARNER = "learner"
GROUP_API = "api"


_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_OF_A_RUN = re.compile(r"turnout:\{([^{}]*)\}:\w+")


def is_run_id(text: str) -> bool:
    """Whether a text can be a run id. Ids name folders and keys, so only letters, digits, `-` and `_` are allowed."""
    return _RUN_ID.fullmatch(text) is not None


def check_run_id(text: str) -> str:
    """The run id. Raises `MalformedMessageError` if the text cannot be one."""
    if not is_run_id(text):
        raise MalformedMessageError(f"{text[:100]!r} is not a run id (1 to 64 letters, digits, - and _).")
    return text


def run_of(key: str) -> str | None:
    """The run that a key belongs to; None for keys of no run."""
    found = _OF_A_RUN.fullmatch(key)
    return found[1] if found else None


def _key(run_id: str, name: str) -> str:
    return f"turnout:{{{check_run_id(run_id)}}}:{name}"


def prompts(run_id: str) -> str:
    return _key(run_id, "prompts")


def completions(run_id: str) -> str:
    return _key(run_id, "completions")


def scored(run_id: str) -> str:
    return _key(run_id, "scored")


def evaluated(run_id: str) -> str:
    return _key(run_id, "evaluated")


def dead(run_id: str) -> str:
    return _key(run_id, "dead")


def feeder(run_id: str) -> str:
    return _key(run_id, "feeder")


def config(run_id: str) -> str:
    return _key(run_id, "config")


def desired(run_id: str) -> str:
    return _key(run_id, "desired")


def attempt(run_id: str) -> str:
    return _key(run_id, "attempt")


def weights(run_id: str) -> str:
    return _key(run_id, "weights")


def turn(run_id: str) -> str:
    return _key(run_id, "turn")


def service(instance: str) -> str:
    return f"turnout:service:{instance}"


def assignment(instance: str) -> str:
    return f"turnout:assignment:{instance}"


def run_keys(run_id: str) -> list[str]:
    """Every key of one run: what deleting a run removes."""
    makers = (prompts, completions, scored, evaluated, dead, feeder, config, desired, attempt, weights, turn)
    return [make(run_id) for make in makers]

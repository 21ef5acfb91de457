"""Users of the queue server: each service may do what its keys and streams (`streams`) ask for, and nothing else.

What the server reads is an ACL file (Valkey, Redis 7 and newer). It holds digests: passwords are long and random, so a
plain SHA-256 gives nothing away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from services.contracts import streams

OPERATOR = "operator"
"""May do everything; for operators and the launcher."""
_CONNECT = "+ping +client|setinfo +client|setname"
_CONSUME = f"{_CONNECT} +get +set +del +@stream +@transaction +eval %W~{streams.EVENTS}"
"""Heartbeat, assignment, streams and events; the key patterns say which."""
_RUN = "turnout:{*}"


def _own(kind: str) -> str:
    """The keys of instances of one kind. Their names begin with it."""
    return f"~{streams.service(kind)}* %R~{streams.assignment(kind)}*"


# A script counts as reading and writing all its keys, so a stream that a group is forwarded to can also be read.
_RULES = {
    "rollout": f"""{_CONSUME} {_own("rollout")} +hgetall +hset
        ~{_RUN}:prompts ~{_RUN}:completions ~{_RUN}:dead ~{_RUN}:turn %R~{_RUN}:config %R~{_RUN}:weights
        %R~{streams.TRAINING}""",
    "verifier": f"""{_CONSUME} {_own("verifier")} +smembers +hget +hset +hlen +rename
        ~{_RUN}:completions ~{_RUN}:scored ~{_RUN}:evaluated ~{_RUN}:dead %R~{streams.RUNS}
        {" ".join(f"~{key}" for key in streams.JUDGEMENTS)}""",
    "learner": f"""{_CONSUME} {_own("learner")} +hget +hgetall +hset +hdel +wait
        ~{_RUN}:prompts %R~{_RUN}:completions ~{_RUN}:scored ~{_RUN}:evaluated ~{_RUN}:dead ~{_RUN}:feeder
        ~{_RUN}:weights ~{_RUN}:turn %R~{_RUN}:config %R~{_RUN}:desired %R~{_RUN}:attempt""",
    "api": f"{_CONNECT} +@read +@write +@transaction +eval +eval_ro +time -@dangerous ~turnout:*",
    OPERATOR: "+@all ~* &*",
}
USERS = tuple(_RULES)


def acl_file(passwords: Mapping[str, str]) -> str:
    """The ACL file. `passwords` has one for each of `USERS`. Clients without one may do nothing."""
    lines = ["user default reset"]
    for user, rules in _RULES.items():
        digest = hashlib.sha256(passwords[user].encode()).hexdigest()
        lines.append(f"user {user} reset on #{digest} {' '.join(rules.split())}")
    return "\n".join(lines) + "\n"

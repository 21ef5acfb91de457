"""Turns of a run's learner and its only rollout server on one GPU (`rollout.share_gpu`).

The hash `turnout:{run}:turn` has two fields, each with one writer:

- `wanted`, by the learner: `SERVER`, or the id of a request for the GPU;
- `asleep`, by the rollout server: the newest request for which it has freed the GPU.

The server may hold the GPU's memory only while `wanted` is `SERVER`, and the learner only once `asleep` is its own
request. Ids are never repeated, so a process that died leaves nothing behind that its successor could mistake for
permission, and a successor continues from the hash alone:

    learner: training ─off-load, publish─▶ wanted = SERVER ─▶ waits for groups ─▶ wanted = request ─▶ trains
    server:  asleep ──────────▶ wakes weights, loads the version, wakes KV cache, samples ─▶ sleeps, asleep = request

Without the hash (before the learner's first request, or if the queue server lost it) the server continues as it is and
starts no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

WANTED: Final = "wanted"
ASLEEP: Final = "asleep"
SERVER: Final = "server"
"""Value of `wanted` while the GPU is the rollout server's."""
WAITS_FOR_TURN: Final = "its turn on the GPU"
"""What a rollout server waits for while the learner trains. It is no stall: a step may take long."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The hash, decoded; empty texts for what it lacks."""

    wanted: str = ""
    asleep: str = ""

    @property
    def is_servers(self) -> bool:
        """Whether the rollout server may hold the GPU's memory."""
        return self.wanted == SERVER

    @property
    def request(self) -> str:
        """The learner's request; empty if it wants nothing."""
        return "" if self.is_servers else self.wanted


def read_turn(fields: Mapping[bytes, bytes]) -> Turn:
    """The turn in a reply to HGETALL."""
    return Turn(*(fields.get(name.encode(), b"").decode(errors="replace") for name in (WANTED, ASLEEP)))

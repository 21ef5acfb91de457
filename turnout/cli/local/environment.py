"""Chooses which of the launcher's variables a process inherits: all except secrets that it does not need."""

from __future__ import annotations

from collections.abc import Mapping

_WORDS = frozenset({"TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "PGPASSWORD", "KEY", "CREDENTIALS"})
"""A variable with such a word in its name is a secret; shells often hold secrets unrelated to Turnout."""
_SERVICES = frozenset({"api", "learner", "rollout", "verifier"})
_LOADERS = frozenset({"learner", "rollout"})
"""Services that load models and data by hub name."""
_NEEDED = {
    "TURNOUT_API_KEY": frozenset({"api"}),
    "TURNOUT_READ_KEY": frozenset({"api"}),
    "TURNOUT_DATABASE_URL": frozenset({"api"}),
    "PGPASSWORD": frozenset({"api"}),
    "PGPASSFILE": frozenset({"api"}),
    "TURNOUT_REDIS_URL": _SERVICES,
    "TURNOUT_SERVICE_TOKEN": _SERVICES,
    "TURNOUT_REWARD_URL": frozenset({"verifier"}),
    "TURNOUT_REWARD_TOKEN": frozenset({"verifier"}),
    "TURNOUT_JUDGE_URL": frozenset({"verifier"}),
    "TURNOUT_JUDGE_KEY": frozenset({"verifier"}),
    "HF_TOKEN": _LOADERS,
    "HUGGING_FACE_HUB_TOKEN": _LOADERS,
    "OTEL_EXPORTER_OTLP_HEADERS": _SERVICES,
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": _SERVICES,
}


def inherited(environment: Mapping[str, str], service: str) -> dict[str, str]:
    """The part of `environment` that a process of this service inherits; `service` may name another program."""
    return {name: value for name, value in environment.items() if _may_have(service, name)}


def _may_have(service: str, name: str) -> bool:
    if name in _NEEDED:
        return service in _NEEDED[name]
    return _WORDS.isdisjoint(name.upper().split("_"))

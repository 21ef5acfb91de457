"""The verifier's own settings; those that all services share are in `services.runtime.settings`."""

from __future__ import annotations

import os

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class VerifierSettings(BaseSettings):
    """How much is judged at once and what one reply may cost, `TURNOUT_VERIFIER_*`."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_VERIFIER_", extra="ignore", use_attribute_docstrings=True)

    max_groups: int = Field(default=64, ge=1)
    """Groups held at once; the rest stay on the stream for other verifiers."""
    workers: int = Field(default_factory=lambda: max(1, min(8, os.cpu_count() or 1)), ge=1)
    """Worker processes for parsers that may hang or crash."""
    programs: int = Field(default_factory=lambda: max(1, min(16, os.cpu_count() or 1)), ge=1)
    """Sandboxed programs that run at once."""
    task_cpu_seconds: float = Field(default=3.0, gt=0)
    """CPU time that judging one reply in a worker may take; beyond it the reply counts as unreadable."""
    task_wall_seconds: float = Field(default=60.0, gt=0)
    """Wall-clock time that judging one reply in a worker may take; far more, for machines are busy."""
    worker_memory_mb: int = Field(default=2048, ge=256)
    """Address space of one worker process, in MiB."""


class EndpointSettings(BaseSettings):
    """The HTTP endpoint that judges questions of kind `http`, `TURNOUT_REWARD_*`."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_REWARD_", extra="ignore", use_attribute_docstrings=True)

    url: str = Field(default="", pattern=r"^(https?://.+)?$")
    """Where replies are sent; empty for none."""
    hosts: str = ""
    """Hosts, separated by commas, that a question's own `tests.url` may name; others are refused."""
    token: str = Field(default="", repr=False)
    """Sent to `url` (never to a question's own) as `Authorization: Bearer <token>`."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """Time for one reply of the endpoint, from the request to its last byte."""
    attempts: int = Field(default=4, ge=1)
    """Tries a rollout, with growing pauses between."""
    concurrency: int = Field(default=32, ge=1)
    """Requests in flight at once."""

"""The verifier's own settings; those that all services share are in `services.runtime.settings`."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.runtime.cores import usable_cores


class VerifierSettings(BaseSettings):
    """How much is judged at once and what one reply may cost, `TURNOUT_VERIFIER_*`."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_VERIFIER_", extra="ignore", use_attribute_docstrings=True)

    max_groups: int = Field(default=64, ge=1)
    """Groups held at once; the rest stay on the stream for other verifiers."""
    workers: int = Field(default_factory=lambda: min(8, usable_cores()), ge=1)
    """Worker processes for parsers that may hang or crash."""
    programs: int = Field(default_factory=lambda: min(16, usable_cores()), ge=1)
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


class JudgeEndpointSettings(BaseSettings):
    """The model that judges questions of kind `judge`, `TURNOUT_JUDGE_*`."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_JUDGE_", extra="ignore", use_attribute_docstrings=True)

    url: str = Field(default="", pattern=r"^(https?://.+)?$")
    """Address of an API in OpenAI's format, such as `http://judge:8000/v1`; empty for none."""
    model: str = ""
    """The model to name in requests."""
    key: str = Field(default="", repr=False)
    """Sent as `Authorization: Bearer <key>`; empty for none."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Time for one answer, from the request to its last byte."""
    deadline_seconds: float = Field(default=600.0, gt=0)
    """Time that a response waits for an endpoint that answers nothing, before it is a fault."""
    attempts: int = Field(default=4, ge=1)
    """Unreadable answers, or failed requests between which others were answered, after which a response is a fault."""
    concurrency: int = Field(default=16, ge=1)
    """Requests in flight at once."""
    max_tokens: int = Field(default=1024, ge=16)
    """Longest answer in tokens, reasoning included."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the first attempt; those after an unreadable answer count up from it."""
    response_format: Literal["json_schema", "json_object", "text"] = "json_schema"
    """How the endpoint is asked for JSON: by a schema, by the older mode, or only by the prompt."""
    extra_body: str = "{}"
    """JSON object laid over each request, for fields of the endpoint; null removes a field."""

    @field_validator("extra_body")
    @classmethod
    def must_be_an_object(cls, text: str) -> str:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ValueError(f"is not JSON ({error})") from error
        if not isinstance(found, dict) or "messages" in found:
            raise ValueError("must be a JSON object without messages")
        return text

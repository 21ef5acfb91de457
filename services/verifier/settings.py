"""The verifier's own settings, `TURNOUT_VERIFIER_*`; those of all services are in `services.runtime.settings`."""

from __future__ import annotations

import os

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.contracts.errors import ConfigurationError


class VerifierSettings(BaseSettings):
    """Deployment settings of the verifier."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_VERIFIER_", extra="ignore", use_attribute_docstrings=True)

    max_groups: int = Field(default=64, ge=1)
    """Groups in hand at once; the rest stay on the stream for other verifiers."""
    workers: int = Field(default_factory=lambda: max(1, min(8, os.cpu_count() or 1)), ge=1)
    """Worker processes for parsers that may hang or crash."""
    task_cpu_seconds: float = Field(default=3.0, gt=0)
    """CPU time that judging one reply in a worker may take; beyond it the reply counts as unreadable."""
    task_wall_seconds: float = Field(default=20.0, gt=0)
    """Wall-clock time that judging one reply in a worker may take."""
    worker_memory_mb: int = Field(default=2048, ge=256)
    """Address space of one worker process, in MiB."""


def load_verifier_settings() -> VerifierSettings:
    """The settings of this process. Raises `ConfigurationError` naming the variable that is wrong."""
    try:
        return VerifierSettings()
    except ValidationError as error:
        item = error.errors()[0]
        name = "TURNOUT_VERIFIER_" + str(item["loc"][0]).upper()
        raise ConfigurationError(
            f"{name} is {item.get('input')!r}: {item['msg'].lower()}.", remedy="Correct or unset it.", field=name
        ) from error

"""The learner's own settings; those that all services share are in `services.runtime.settings`."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.contracts.errors import ConfigurationError
from services.runtime.settings import LOOPBACK, Settings, load


class LearnerSettings(BaseSettings):
    """On which machines a run's ranks are, `TURNOUT_LEARNER_*`."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_LEARNER_", extra="ignore", use_attribute_docstrings=True)

    machines: int = Field(default=1, ge=1, le=4096)
    """Machines that every run's ranks are spread over evenly, this one included."""
    main: str = ""
    """URL of the learner that this one helps with ranks on another machine; empty: it serves runs itself."""
    meeting_port: int = Field(default=29500, ge=0, le=65535)
    """Port at which ranks on several machines meet; 0 picks a free one at each start of a run."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads that each rank computes with on a CPU. 0 chooses: one for small models; from 20 million parameters on,
    all cores but one (with `training.max_staleness: 0` all of them), divided by the ranks."""


def load_learner_settings(settings: Settings) -> LearnerSettings:
    """This process's settings. Raises `ConfigurationError` if learners could not find each other with them."""
    found = load(LearnerSettings)
    if found.main and found.machines > 1:
        raise ConfigurationError(
            f"TURNOUT_LEARNER_MACHINES is {found.machines}, but TURNOUT_LEARNER_MAIN is {found.main}, so this learner "
            "has no machines of its own.",
            remedy="Set the number of machines at that learner alone.",
            field="TURNOUT_LEARNER_MACHINES",
        )
    if found.main:
        _check_main(found.main, settings)
    if found.machines > 1 and (urlsplit(settings.advertise_url).hostname or settings.host) in LOOPBACK:
        raise ConfigurationError(
            f"TURNOUT_LEARNER_MACHINES is {found.machines}, but other machines cannot reach this one: "
            f"TURNOUT_HOST is {settings.host} and TURNOUT_ADVERTISE_URL is {settings.advertise_url or 'not set'}.",
            remedy="Set both to an address of this machine in the learners' network.",
            field="TURNOUT_ADVERTISE_URL",
        )
    return found


def _check_main(url: str, settings: Settings) -> None:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) > 0
    except ValueError:
        right = False
    if not right:
        raise ConfigurationError(
            f"TURNOUT_LEARNER_MAIN is {url[:200]!r}, not http://<host>:<port>.",
            remedy="Name the TURNOUT_ADVERTISE_URL of the learner that serves the runs.",
            field="TURNOUT_LEARNER_MAIN",
        )
    if not settings.service_token:
        raise ConfigurationError(
            "TURNOUT_LEARNER_MAIN is set, but TURNOUT_SERVICE_TOKEN is not.",
            remedy="Set the token of that learner.",
            field="TURNOUT_SERVICE_TOKEN",
        )

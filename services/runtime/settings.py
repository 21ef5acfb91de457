"""Settings that services read from the environment, `TURNOUT_*`. All services share one class."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.contracts.errors import ConfigurationError, check_secret, without_password
from services.contracts.streams import check_run_id
from services.runtime.address import host_of

S = TypeVar("S", bound=BaseSettings)


class Settings(BaseSettings):
    """Deployment settings. Run settings are in `services.contracts.run_config`."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_", extra="ignore", use_attribute_docstrings=True)

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    """Redis or Valkey server with the queues."""
    redis_replicas: int = Field(default=0, ge=0, le=10)
    """Replicas of that server that must have a learner's events before it continues, so that a failover loses none."""
    home: Path = Path(".turnout")
    """Folder for runs (weights, checkpoints), the SQLite database and logs."""
    weights_folder: Path | None = None
    """Folder for published weights, the same for learner and rollout servers; unset: each run's folder under `home`.
    /dev/shm/turnout keeps them in memory if they share a machine (a run needs three times the weights' size)."""
    instance: str = ""
    """Unique name of this instance, stable over restarts; empty: the service's name followed by -0. `{hostname}` stands
    for the machine's or container's name, so that several containers with one configuration have different names."""
    host: str = "127.0.0.1"
    """Address that the service's HTTP server binds to."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the service's HTTP server; 0 picks a free one."""
    advertise_url: str = ""
    """URL under which other services reach this one; empty: http://<host>:<port>. IPv6 addresses are written in
    brackets; `{hostname}` is replaced as in TURNOUT_INSTANCE."""
    database_url: str = Field(default="", repr=False)
    """SQLAlchemy URL of the API's database; empty: an SQLite file under `home`."""
    api_key: str = Field(default="", repr=False)
    """First key of the API, with the role operate: clients send it as `Authorization: Bearer <key>`. Setting it turns
    keys on; needed to listen beyond loopback."""
    read_key: str = Field(default="", repr=False)
    """A second key, with the role read: for Prometheus. Needs TURNOUT_API_KEY."""
    rate_limit: str = "100/second;3000/minute"
    """Requests that the API takes from one client (a key, or an address without one); empty for no limit."""
    max_runs_per_key: int = Field(default=0, ge=0)
    """Runs that one key may have in progress at once; its further runs wait in the queue. 0: no limit."""
    roots: str = ""
    """Folders that models and data files of runs may be in, separated by colons, links followed; empty: the API's
    working folder and `home`."""
    service_token: str = Field(default="", repr=False)
    """Token that services send each other. Needed to listen beyond loopback; empty: the one that `turnout up` made in
    the home, if it did."""
    stall_seconds: float = Field(default=60.0, gt=0)
    """A service that waits longer than this for one thing is reported as stalled."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object per line, or readable text."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that a rollout server takes for weights and KV cache. Lower it if the learner works on
    the same GPU."""
    serve_share: float = Field(default=0.125, ge=0, le=1)
    """Share of a rollout server's sequences (rollout.max_num_seqs) that requests to the policy may use, at least one;
    0 serves none."""
    tool_parser: str = ""
    """vLLM's parser of the tool calls in served responses; empty: the one for the model's chat template."""
    reasoning_parser: str = ""
    """vLLM's parser that separates the reasoning of served responses (qwen3, deepseek_r1); empty: it stays in the
    text."""
    allow_remote_code: bool = False
    """Let runs set model.trust_remote_code."""

    @field_validator("host")
    @classmethod
    def usual_form(cls, host: str) -> str:
        """`[::1]` and `0:0:0:0:0:0:0:1` are ::1."""
        return host_of(host)

    @field_validator("instance", "advertise_url")
    @classmethod
    def of_this_machine(cls, text: str) -> str:
        """`{hostname}` filled in."""
        return text.replace("{hostname}", socket.gethostname())

    @field_validator("advertise_url")
    @classmethod
    def is_url(cls, url: str) -> str:
        """One that no service could call would fail every weight push."""
        try:
            parts = urlsplit(url)
            right = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            right = False
        if url and not right:
            raise ValueError(
                "It is not http://<host>:<port> (an IPv6 address is written in brackets, http://[::1]:8401)"
            )
        return url

    def instance_name(self, service: str) -> str:
        """This instance's name, with the default filled in."""
        return self.instance or f"{service}-0"

    @property
    def root_folders(self) -> list[Path]:
        """`roots` with the default filled in, links followed."""
        named = [Path(part) for part in self.roots.split(":") if part]
        return [folder.expanduser().resolve() for folder in named or [Path.cwd(), self.home]]

    @property
    def runs_folder(self) -> Path:
        """Folder that holds one folder per run."""
        return self.home / "runs"

    @property
    def weights_roots(self) -> list[Path]:
        """Folders in which the published weights of all runs lie."""
        return [self.home] if self.weights_folder is None else [self.home, self.weights_folder]

    @property
    def fetched_folder(self) -> Path:
        """Folder of weights that this machine has fetched from a learner with which it shares none."""
        return (self.home if self.weights_folder is None else self.weights_folder) / "fetched"

    def run_folder(self, run_id: str) -> Path:
        """Folder of one run. Raises `MalformedMessageError` for a text that is no run id."""
        return self.runs_folder / check_run_id(run_id)

    def weights_of(self, run_id: str) -> Path:
        """Folder of one run's published weights. Raises as `run_folder` does."""
        if self.weights_folder is None:
            return self.run_folder(run_id) / "weights"
        return self.weights_folder / check_run_id(run_id)


LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def secret_source() -> dict[str, Any]:
    """Where a settings class also looks: a folder of files, each named after a variable, as Docker and Kubernetes mount
    secrets (turnout_api_key, ...). TURNOUT_SECRETS_FOLDER names it; a variable that is set comes first."""
    folder = os.environ.get("TURNOUT_SECRETS_FOLDER", "")
    if folder and not Path(folder).is_dir():
        raise ConfigurationError(
            f"TURNOUT_SECRETS_FOLDER is {folder}, but there is no such folder.",
            remedy="Correct or unset it.",
            field="TURNOUT_SECRETS_FOLDER",
        )
    return {"_secrets_dir": folder} if folder else {}


def load(kind: type[S]) -> S:
    """Settings of this process. Raises `ConfigurationError` naming the variable that is wrong."""
    try:
        return kind(**secret_source())
    except ValidationError as error:
        item = error.errors()[0]
        name = str(kind.model_config.get("env_prefix", "")) + str(item["loc"][0]).upper()
        reason = item["msg"].removeprefix("Value error, ")
        raise ConfigurationError(
            f"{name} is {without_password(str(item.get('input')))!r}: {reason[:1].lower() + reason[1:]}.",
            remedy="Correct or unset it.",
            field=name,
        ) from error


def load_settings() -> Settings:
    """The settings that all services share. Raises `ConfigurationError` naming the variable that is wrong."""
    settings = load(Settings)
    check_secret("TURNOUT_API_KEY", settings.api_key)
    check_secret("TURNOUT_READ_KEY", settings.read_key)
    check_secret("TURNOUT_SERVICE_TOKEN", settings.service_token)
    if settings.host not in LOOPBACK and not settings.service_token:
        raise ConfigurationError(
            f"TURNOUT_HOST is {settings.host}, which other machines can reach, but TURNOUT_SERVICE_TOKEN is not set.",
            remedy="Set TURNOUT_SERVICE_TOKEN to a long random text, the same for all services.",
            field="TURNOUT_SERVICE_TOKEN",
        )
    return settings

"""What `turnout up` will start: commands, environment and ports, decided before anything starts.

Only the ports of the API and the queue server are chosen here. The other services listen on a port that the system
picks and report it in their heartbeat, so that no port can be taken between being chosen and being used.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from services.contracts.errors import ConfigurationError, ConflictError, UnavailableError
from services.contracts.queue_users import OPERATOR
from services.runtime.address import free_port, host_of, port_is_free, url_of
from services.runtime.cores import usable_cores
from services.runtime.secret_files import SERVICE_TOKEN, read_or_make
from turnout.cli.local.home import check_weights_folder, make_private
from turnout.cli.local.processes import LAUNCH_VARIABLE, alive, read_state
from turnout.cli.local.queue_server import url_for

MIN_FREE_BYTES = 1 << 30
SMALL_MACHINE_CORES = 8
"""On up to this many cores, every service computes with one thread, because rollout and learner share the cores."""


@dataclass(frozen=True, slots=True)
class Child:
    """One process to start."""

    instance: str
    command: list[str]
    environment: dict[str, str] = field(repr=False)
    """Added to what it inherits from the launcher."""

    @property
    def service(self) -> str:
        return self.instance.rpartition("-")[0] or self.instance


@dataclass(frozen=True, slots=True)
class Counts:
    """How many instances of each service."""

    rollout_servers: int = 1
    verifiers: int = 1
    learners: int = 1

    def options(self) -> list[str]:
        """Arguments of `turnout up` that ask for them."""
        values = {"rollout-servers": self.rollout_servers, "verifiers": self.verifiers, "learners": self.learners}
        return [text for name, value in values.items() for text in (f"--{name}", str(value))]


ONE_EACH = Counts()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a launch needs."""

    home: Path
    launch: str
    working_folder: Path
    """Where services run, which relative paths in run files start from."""
    api_url: str
    redis_url: str = field(repr=False)
    """With the operator's credentials, which allow everything."""
    redis_port: int | None
    """Port of the home's own queue server; None if TURNOUT_REDIS_URL names one."""
    children: list[Child] = field(default_factory=list)

    @property
    def logs(self) -> Path:
        return self.home / "logs"


def working_folder() -> Path:
    """The checkout that this code is in, or the current folder for an installed package."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "deploy").is_dir() else Path.cwd()


def api_host() -> str:
    """The address that the services listen on."""
    return host_of(os.environ.get("TURNOUT_HOST", ""))


def make_plan(home: Path, counts: Counts = ONE_EACH, *, api_port: int) -> Plan:
    """The plan of one launch. `api_port` 0 picks a free one."""
    home = home.resolve()
    launch = secrets.token_hex(16)
    given = os.environ.get("TURNOUT_REDIS_URL", "")
    redis_port = None if given else free_port()
    host = api_host()
    port = api_port or free_port(host)
    common = _common_environment(home, launch)
    token = os.environ.get("TURNOUT_SERVICE_TOKEN") or read_or_make(home, SERVICE_TOKEN)

    def queue_url(user: str) -> str:
        return given or url_for(home, redis_port or 0, user)

    instances = {"api": 1, "verifier": counts.verifiers, "rollout": counts.rollout_servers, "learner": counts.learners}
    children = []
    for service, count in instances.items():
        for index in range(count):
            instance = f"{service}-{index}"
            own = {"TURNOUT_INSTANCE": instance, "TURNOUT_PORT": str(port if service == "api" else 0)}
            own |= {"TURNOUT_REDIS_URL": queue_url(service), "TURNOUT_SERVICE_TOKEN": token}
            command = [sys.executable, "-m", f"services.{service}"]
            children.append(Child(instance, command, common | own))
    api_url = url_of(host, port)
    return Plan(home, launch, working_folder(), api_url, queue_url(OPERATOR), redis_port, children)


def _common_environment(home: Path, launch: str) -> dict[str, str]:
    # The current folder too: users who start services there expect its files to be readable.
    roots = os.environ.get("TURNOUT_ROOTS") or ":".join(dict.fromkeys(map(str, (working_folder(), home, Path.cwd()))))
    environment = {
        "TURNOUT_HOME": str(home),
        "TURNOUT_ROOTS": roots,
        LAUNCH_VARIABLE: launch,
        "PYTHONUNBUFFERED": "1",
    }
    if usable_cores() <= SMALL_MACHINE_CORES and not os.environ.get("OMP_NUM_THREADS"):
        environment["OMP_NUM_THREADS"] = "1"
    return environment


def check_plan(plan: Plan) -> None:
    """Check before anything starts whether the plan can work.

    Raises:
        ConflictError: the home is in use.
        UnavailableError: the port is taken, the disk is full, or Redis does not answer.
        ConfigurationError: the home is not writable.
    """
    try:
        plan.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(plan.home)
        if weights := os.environ.get("TURNOUT_WEIGHTS_FOLDER"):
            check_weights_folder(Path(weights))
        probe = plan.home / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"The home {plan.home} is not writable: {error.strerror}.", remedy="Choose another with --home."
        ) from error
    state = read_state(plan.home)
    if state is not None and alive(state):
        raise ConflictError(
            f"The home {plan.home} is in use by {len(alive(state))} processes (API at {state.api_url}).",
            remedy=f"Use that deployment, stop it with `turnout down --home {plan.home}`, or choose another --home.",
        )
    free = shutil.disk_usage(plan.home).free
    if free < MIN_FREE_BYTES:
        raise UnavailableError(
            f"Only {free / 2**20:.0f} MiB are free on the disk of {plan.home}; checkpoints and queues need "
            f"at least {MIN_FREE_BYTES / 2**20:.0f} MiB.",
            remedy="Free some space or choose a --home on another disk.",
        )
    if not port_is_free(api_host(), 0):
        raise UnavailableError(
            f"TURNOUT_HOST is {api_host()}, which is not an address of this machine.",
            remedy="Unset it, or set it to an address that `ip address` lists.",
        )
    port = int(plan.api_url.rsplit(":", 1)[1])
    if not port_is_free(api_host(), port):
        raise UnavailableError(
            f"Port {port} is in use, so the API cannot listen on it.",
            remedy="Stop the program that uses it, or choose another with --api-port (0 picks a free one).",
        )
    if plan.redis_port is None:
        from turnout.cli.local.queue_server import check_redis_url

        check_redis_url(plan.redis_url)

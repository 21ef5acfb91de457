"""Turnout on three hosts that share nothing: what runs where, as an operator would start it."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass, field
from typing import Any

import psutil
import redis as redis_sync

from services.contracts.queue_users import OPERATOR, USERS, acl_file
from services.contracts.records import Service
from tests.ring.hosts.network import Host, Network
from tools.deployment import ROOT, demo_config, patiently
from turnout import Client
from turnout.cli.local.queue_server import find_binary

QUEUE_PORT, API_PORT, LEARNER_PORT = 6379, 8400, 8401
VALKEY = """\
bind {address}
port {port}
dir "{home}"
aclfile "{home}/users.acl"
save ""
appendonly yes
appendfsync always
"""


@dataclass(slots=True)
class Site:
    """a: queue server, API, verifier and the learner with rank 0. b: the learner with rank 1. c: the rollout server."""

    network: Network
    a: Host = field(init=False)
    b: Host = field(init=False)
    c: Host = field(init=False)
    processes: dict[str, psutil.Popen] = field(default_factory=dict)
    _passwords: dict[str, str] = field(default_factory=lambda: {user: secrets.token_hex(16) for user in USERS})
    _token: str = field(default_factory=lambda: secrets.token_hex(16))
    key: str = field(default_factory=lambda: secrets.token_hex(16))

    def __post_init__(self) -> None:
        self.a, self.b, self.c = (self.network.add(name) for name in "abc")

    def queue_url(self, user: str = OPERATOR) -> str:
        return f"redis://{user}:{self._passwords[user]}@{self.a.address}:{QUEUE_PORT}/0"

    def start(self) -> None:
        """Start everything, one host after the other. The queue server comes first."""
        home = self.network.home
        (self.a.files / "users.acl").write_text(acl_file(self._passwords))
        config = VALKEY.format(address=self.a.address, port=QUEUE_PORT, home=home)
        (self.a.files / "valkey.conf").write_text(config)
        command = [str(find_binary()), str(home / "valkey.conf")]
        self.processes["valkey"] = self.network.start(self.a, command, dict(os.environ), "valkey")
        patiently(self._queue_answers, bool)
        self.service(self.a, "api-0", API_PORT, TURNOUT_API_KEY=self.key, TURNOUT_STALL_SECONDS="5")
        self.service(self.a, "verifier-0")
        self.service(self.a, "learner-0", LEARNER_PORT, TURNOUT_LEARNER_MACHINES="2")
        self.start_others()

    def start_others(self) -> None:
        """Start what b and c have."""
        self.service(self.b, "learner-1", TURNOUT_LEARNER_MAIN=f"http://{self.a.address}:{LEARNER_PORT}")
        self.service(self.c, "rollout-0")

    def _queue_answers(self) -> bool:
        try:
            with redis_sync.Redis.from_url(self.queue_url()) as client:
                return bool(client.ping())
        except redis_sync.RedisError:
            return False

    def service(self, host: Host, instance: str, port: int = 0, **settings: str) -> None:
        kind = instance.rpartition("-")[0]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TURNOUT_")}
        inherited.pop("PYTHONDONTWRITEBYTECODE", None)
        environment = inherited | {
            "TURNOUT_HOME": str(self.network.home),
            "TURNOUT_HOST": host.address,
            "TURNOUT_PORT": str(port),
            "TURNOUT_INSTANCE": instance,
            "TURNOUT_REDIS_URL": self.queue_url(kind),
            "TURNOUT_SERVICE_TOKEN": self._token,
            "TURNOUT_ROOTS": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            **settings,
        }
        command = [sys.executable, "-m", f"services.{kind}"]
        self.processes[instance] = self.network.start(host, command, environment, instance)

    def client(self) -> Client:
        return Client(f"http://{self.a.address}:{API_PORT}", self.key)

    def ranks(self, host: Host) -> set[int]:
        """Processes of the training program that a host has, whoever started them."""
        found = set()
        for pid in self.network.pids(host):
            try:
                if "services.learner.program.main" in psutil.Process(pid).cmdline():
                    found.add(pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def log(self, name: str) -> str:
        return (self.network.folder / "logs" / f"{name}.log").read_text(errors="replace")


def config(num_training_steps: int) -> dict[str, Any]:
    """The demo's run, on-policy, with two ranks and weights over HTTP."""
    return demo_config(
        training={"steps": num_training_steps, "num_ranks": 2, "zero_stage": 2, "max_staleness": 0},
        evaluation={"every_steps": None, "before_training": False, "after_training": False},
        checkpoint={"every_steps": 2, "keep_last": 2, "keep_best": 0},
        weights={"transport": "http"},
    )


def service_shown(client: Client, instance: str) -> Service | None:
    return next((record for record in client.services() if record.instance == instance), None)

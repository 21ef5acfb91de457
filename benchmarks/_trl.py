"""TRL's side of the comparison, as seen from ours: its environment and its trainers, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

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
def trl(python: Path, kind: str, recording: Path, policy: Path, microbatch: int) -> Iterator[Callable[[], Spent]]:
    """A trainer of TRL in a process of its own; the function makes one step and tells its time."""
    folder = recording.parent / f"{kind}-{microbatch}"
    side = Path(__file__).with_name("_trl_side.py")
    alone = {name: value for name, value in os.environ.items() if name not in OURS}
    variables = {**alone, "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(item) for item in (python, side, kind, recording, policy, microbatch, folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=variables
    )
    assert process.stdin is not None
    tail: list[str] = []

    def until(word: str) -> list[str]:
        assert process.stderr is not None
        for line in process.stderr:
            tail.append(line)
            if line.startswith(word):
                return line.split()[1:]
        raise RuntimeError(f"TRL's {kind} ended: {''.join(tail[-15:])}")

    def step() -> Spent:
        assert process.stdin is not None
        process.stdin.write("step\n")
        process.stdin.flush()
        wall, cpu, *_ = until("STEP")
        return float(wall), float(cpu)

    try:
        until("READY")
        yield step
    finally:
        process.stdin.close()
        process.wait()

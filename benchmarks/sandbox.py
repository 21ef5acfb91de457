"""The cost of a sandboxed run, compared with a bare `python -c`, bubblewrap and sandlock, if they are installed.

All of them run the same small program, in turn, so that ratios hold on a busy machine too. Throughput keeps one run
per core in flight. Overhead is the wall time of one run, alone, less what the program itself takes inside Python.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from services.contracts.errors import TurnoutError
from services.verifier.sandbox.sandbox import Program, Sandbox, probe

SOURCE = "import sys\nprint(sum(map(int, sys.stdin.read().split())))\n"
STDIN = b"1 2 3 4 5\n"
PYTHON = os.path.realpath(sys.executable)
NUM_ROUNDS = 5
NUM_RUNS = 60
NUM_ALONE = 20

Run = Callable[[], Awaitable[None]]


def own_seconds() -> float:
    """What the program takes in a warm interpreter: compile, run, print."""
    import contextlib
    import io

    times = []
    for _ in range(200):
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(SOURCE.replace("sys.stdin.read()", repr(STDIN.decode())), "x", "exec"), {})
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def process(*command: str) -> Run:
    """A run that starts a process of its own."""

    async def run() -> None:
        pipe = asyncio.subprocess.PIPE
        started = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
        output, errors = await started.communicate(STDIN)
        assert output == b"15\n", (command, output, errors)

    return run


def sandboxed(sandbox: Sandbox) -> Run:
    program = Program(SOURCE, stdin=STDIN)

    async def run() -> None:
        result = await sandbox.run(program)
        assert result.stdout == b"15\n", result

    return run


def bubblewrap() -> Run | None:
    """Namespaces like ours around a fresh interpreter; no filter, no limits."""
    found = shutil.which("bwrap")
    if found is None:
        return None
    mounts = ["--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
    prefix = sys.base_prefix
    if not prefix.startswith("/usr"):
        mounts += ["--ro-bind", prefix, prefix]
    return process(found, *mounts, "--tmpfs", "/tmp", "--unshare-all", "--", PYTHON, "-S", "-c", SOURCE)


def sandlock() -> Run | None:
    """The sandlock package's own way to run a command, if it is installed."""
    if importlib.util.find_spec("sandlock") is None:
        return None
    import sandlock  # type: ignore[import-not-found]

    readable = [
        path for path in ("/usr", "/lib", "/lib64", "/etc", "/proc", "/dev", sys.base_prefix) if os.path.exists(path)
    ]
    source = SOURCE.replace("sys.stdin.read()", repr(STDIN.decode()))

    def once() -> None:
        box = sandlock.Sandbox(fs_readable=readable)
        result = box.run([PYTHON, "-S", "-c", source])
        assert result.stdout == b"15\n", result

    async def run() -> None:
        await asyncio.to_thread(once)

    return run


async def throughput(run: Run, at_once: int) -> float:
    """Runs a second with `at_once` in flight."""

    async def worker() -> None:
        for _ in range(NUM_RUNS // at_once):
            await run()

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return NUM_RUNS / (time.perf_counter() - started)


async def alone(run: Run) -> float:
    """Median wall seconds of one run without other work of this program."""
    times = []
    for _ in range(NUM_ALONE):
        started = time.perf_counter()
        await run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


async def main() -> None:
    num_cores = os.cpu_count() or 1
    isolated, bare = Sandbox(), Sandbox(namespaces=False)
    await isolated.start()
    candidates: dict[str, Run | None] = {"**Turnout's sandbox**": sandboxed(isolated)}
    try:
        await bare.start()
        candidates["the same without namespaces"] = sandboxed(bare)
    except TurnoutError as error:  # an interpreter below /root, say: a line less, not a failed benchmark
        print(f"Without namespaces: {error}", file=sys.stderr)
    candidates["bare `python -c`, no sandbox"] = process(sys.executable, "-c", SOURCE)
    candidates["bare `python -S -c`, no sandbox"] = process(PYTHON, "-S", "-c", SOURCE)
    candidates["bubblewrap"] = bubblewrap()
    candidates["sandlock"] = sandlock()
    runs = {name: run for name, run in candidates.items() if run is not None}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(NUM_ROUNDS):
        for name, run in runs.items():
            rates[name].append(await throughput(run, num_cores))
            seconds[name].append(await alone(run))
    await isolated.close()
    await bare.close()
    own = own_seconds()
    ours = statistics.median(rates["**Turnout's sandbox**"])
    print("## Sandbox\n")
    print(
        f"One small program, {num_cores} at once for throughput, one alone for overhead; medians of {NUM_ROUNDS} "
        f"rounds in turn. Layers: {', '.join(probe().active)}. Load average at the end: {os.getloadavg()[0]:.1f}.\n"
    )
    print("| | runs/s | median overhead | our throughput relative to it |\n|---|---|---|---|")
    for name in runs:
        rate = statistics.median(rates[name])
        overhead = (statistics.median(seconds[name]) - own) * 1000
        print(f"| {name} | {rate:.0f} | {overhead:.1f} ms | {ours / rate:.1f}x |")
    missing = [name for name, run in candidates.items() if run is None]
    if missing:
        print(f"\nNot installed here: {', '.join(missing)}.")


if __name__ == "__main__":
    asyncio.run(main())

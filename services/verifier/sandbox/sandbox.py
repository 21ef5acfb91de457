"""The sandbox: runs Python programs written by a model, and reports their results.

    sandbox = Sandbox()
    await sandbox.start()          # raises if a required layer is missing
    result = await sandbox.run(Program("print(int(input()) * 2)", stdin=b"21", wall_seconds=5, cpu_seconds=2))
    await sandbox.close()

GUARANTEES (tests/services/verifier/sandbox proves each; docs/security.md explains how)

1. No network: a program cannot create a socket, not even to this machine.
2. A program can read only the Python installation's library, shared libraries and time zones. It cannot read our
   environment, command lines or memory, or another program's source, input or output.
3. A program can write only to a folder of 16 MiB and 1024 files, which contains its own source and is deleted after the
   run (to no folder if namespaces are not allowed), and cannot change an owner, mode or time anywhere.
4. No other process: no fork, no exec, no signal to others. At most 64 open files and 32 threads (briefly 63 if
   namespaces are not allowed).
5. CPU time, wall time, memory, file size and output are bounded, whatever the program does.
6. Nothing survives a run: when `run` returns, every thread and file of the program is gone.
7. `Result` is measured outside the program. A program determines only its exit code and its two outputs. Grade outputs
   outside, and never pass expected values in.
8. Our own fault (zygote died, host out of memory) is `infrastructure_fault`, and a program cannot fake it.
9. If a required layer (rlimits, no_new_privs, seccomp, Landlock) is missing, nothing runs.

NOT GUARANTEED

* Protection from bugs in the kernel itself. The filter leaves about 100 system calls. For stronger protection, run the
  verifier in a virtual machine or under gVisor.
* Secrecy of time and load: programs see clocks and can measure how busy the machine is. Side channels remain.
* That a program can do everything that Python can: there are no subprocesses, multiprocessing, sockets or asyncio,
  which exposes less of the kernel. As process 1 of its namespace it survives signals without a handler, so
  `signal.alarm` alone does not end it.
* The same result on every machine: libraries differ. Hash seeds are fixed; `random` is seeded again for each run.
* Confidentiality of the Python installation, its path and the kernel's version; without namespaces also of the host's
  name, and of names, sizes and times of files whose path a program can guess.
* Fair sharing of the machine between programs: limits are per program, and `num_zygotes` programs run at once.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from services.contracts.errors import TurnoutError, UnavailableError
from services.verifier.sandbox.layers import Layers, probe
from services.verifier.sandbox.results import Program, Result
from services.verifier.sandbox.zygote_process import Zygote, ZygoteDied

__all__ = ["Layers", "Program", "Result", "Sandbox", "probe"]

_SELF_TEST = Program("import json, heapq, decimal\nprint(json.dumps(6 * 7))", wall_seconds=30, cpu_seconds=10)


class Sandbox:
    """A pool of zygotes. Any number of tasks may call `run`; `num_zygotes` programs run at once and the rest wait."""

    def __init__(
        self,
        num_zygotes: int | None = None,
        *,
        packages: Sequence[str] = (),
        namespaces: bool = True,
        runs_per_zygote: int = 2000,
        python: str = sys.executable,
    ) -> None:
        """
        Args:
            num_zygotes: number of programs that run at once; None for one per core.
            packages: paths of importable packages that programs may read (numpy's folder and its `numpy.libs`).
            namespaces: use namespaces if they are allowed. False leaves seccomp, Landlock and limits, as in a default
                container.
            runs_per_zygote: number of runs after which a zygote is replaced, so that nothing accumulates in it.
            python: interpreter for programs, 3.11 or later; must be able to import this package without site packages.
        """
        self._python = python
        self._packages = tuple(packages)
        self._namespaces = namespaces
        self._runs_per_zygote = runs_per_zygote
        self._num = num_zygotes or os.cpu_count() or 1
        self._idle: asyncio.LifoQueue[int] = asyncio.LifoQueue()
        self._idle.put_nowait(-1)
        self._zygotes: dict[int, Zygote] = {}
        self._closed = True
        self.layers = Layers()
        """The active layers, set by `start`."""

    async def start(self) -> None:
        """Probe, start the zygotes and run one program in each.

        Raises:
            UnavailableError: a required layer is missing, or a trivial program fails.
        """
        self.layers = await asyncio.to_thread(probe, self._python)
        self.layers.require()
        self._closed = False
        self._idle = asyncio.LifoQueue()  # last in, first out, since a zygote that just ran has warm pages
        for index in range(self._num):
            self._idle.put_nowait(index)
        try:
            for result in await asyncio.gather(*(self.run(_SELF_TEST) for _ in range(self._num))):
                if result.stdout != b"42\n":
                    said = result.fault or (result.stderr or result.stdout)[-600:].decode(errors="replace")
                    raise UnavailableError(
                        f"A trivial program failed in the sandbox with status {result.status}: {said}",
                        remedy=f"Check that every user can read the library of {self._python} and its parent folders.",
                    )
        except TurnoutError:
            await self.close()
            raise

    async def run(self, program: Program) -> Result:
        """Run one program and return its result. Waits for a free zygote first, which does not count as its time."""
        idle = self._idle
        index = await idle.get()
        try:
            if self._closed:
                raise UnavailableError("The sandbox is not running.", remedy="Call start() before run().")
            return await self._run_in(index, program)
        finally:
            idle.put_nowait(index)

    async def close(self) -> None:
        """Kill running programs and wait until they are gone. Runs that wait for a zygote raise. Idempotent."""
        self._closed = True
        self._idle.put_nowait(-1)  # wakes one waiting run, and each wakes the next
        zygotes, self._zygotes = list(self._zygotes.values()), {}
        await asyncio.gather(*(zygote.kill() for zygote in zygotes))

    async def _run_in(self, index: int, program: Program) -> Result:
        try:
            zygote = self._zygotes.get(index)
            if zygote is None or zygote.num_runs >= self._runs_per_zygote:
                zygote = await self._replace(index)
            return await zygote.run(program)
        except (ZygoteDied, OSError) as error:
            await self._discard(index)
            return Result.of_fault(str(error))
        except asyncio.CancelledError:
            await self._discard(index)  # its program may still be running
            raise

    async def _replace(self, index: int) -> Zygote:
        await self._discard(index)
        isolated = self.layers.isolated and self._namespaces
        zygote = Zygote(self._python, index, self._packages, isolated=isolated, landlock_abi=self.layers.landlock_abi)
        self._zygotes[index] = zygote
        await zygote.start()
        return zygote

    async def _discard(self, index: int) -> None:
        zygote = self._zygotes.pop(index, None)
        if zygote is not None:
            await zygote.kill()

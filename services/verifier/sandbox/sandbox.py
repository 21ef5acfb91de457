"""The sandbox: runs Python programs written by a model, and says what became of them.

    sandbox = Sandbox()
    await sandbox.start()          # refuses to start where a required layer is missing
    result = await sandbox.run(Program("print(int(input()) * 2)", stdin=b"21", wall_seconds=5, cpu_seconds=2))
    await sandbox.close()

GUARANTEES (tests/services/verifier/sandbox proves each; docs/security.md explains how)

1. No network: no socket can be made, also not to this machine.
2. No reading of files but the Python installation's library, shared libraries and time zones; no reading of our
   environment, command lines, memory, or of another program's source, input or output.
3. No writing but to a folder of 16 MiB and 1024 files that holds the program's own file and vanishes with the run (no
   writing at all where namespaces are not allowed), and no changes of owner, mode or time anywhere.
4. No other process: no fork, no exec, no signal to others. At most 64 open files and 32 threads (63 for a moment where
   namespaces are not allowed).
5. Bounded CPU time, wall time, memory, file size and output, whatever the program does.
6. Nothing survives a run: when `run` returns, every thread and file of the program is gone.
7. What `Result` says is measured outside the program. A program decides its exit code and its two outputs, nothing
   else; grade outputs outside, and never hand expected values in.
8. Our own fault (zygote died, out of memory on the host) is `infrastructure_fault`, and a program cannot feign it.
9. If a required layer (rlimits, no_new_privs, seccomp, Landlock) is missing, nothing runs.

NOT GUARANTEED

* Protection from bugs of the kernel itself. The filter leaves about 100 system calls; for more, run the verifier in
  a virtual machine or under gVisor.
* Secrecy of time and load: programs see clocks and can measure how busy the machine is. Side channels stay open.
* That a program may do everything Python can: no subprocesses, multiprocessing, sockets, asyncio. In exchange, less
  kernel. As process 1 of its namespace it survives signals without a handler (`signal.alarm` alone ends nothing).
* The same result on every machine: libraries differ. Hash seeds are fixed; `random` is seeded again for each run.
* Confidentiality of the Python installation, of its path, and of the kernel's version. Without namespaces also of the
  host's name, and of names, sizes and times of files whose path a program can guess.
* A fair share of the machine between programs: limits are per program, and `num_zygotes` of them run at once.
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
    """A pool of zygotes. Any number of tasks may call `run`; `num_zygotes` programs run at once, the rest wait."""

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
            num_zygotes: programs at once; None: one a core.
            packages: paths of importable packages that programs may read (numpy's folder and its `numpy.libs`).
            namespaces: use them where allowed. False leaves seccomp, Landlock and limits, as in a default container.
            runs_per_zygote: a zygote is replaced after so many, so that nothing can pile up in it.
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
        """What is in force; filled by `start`."""

    async def start(self) -> None:
        """Probe, start the zygotes and run one program in each.

        Raises:
            UnavailableError: a required layer is missing, or programs do not run; the remedy says what to do.
        """
        self.layers = await asyncio.to_thread(probe, self._python)
        self.layers.require()
        self._closed = False
        self._idle = asyncio.LifoQueue()  # last in, first out: a zygote that ran just now has its pages at hand
        for index in range(self._num):
            self._idle.put_nowait(index)
        try:
            for result in await asyncio.gather(*(self.run(_SELF_TEST) for _ in range(self._num))):
                if result.stdout != b"42\n":
                    said = result.fault or (result.stderr or result.stdout)[-600:].decode(errors="replace")
                    raise UnavailableError(
                        f"A trivial program ended with {result.status} in the sandbox: {said}",
                        remedy=f"Check that every user may read the library of {self._python} and what is above it.",
                    )
        except TurnoutError:
            await self.close()
            raise

    async def run(self, program: Program) -> Result:
        """Run one program and wait for its end; waits for a free zygote first (not counted as its time)."""
        idle = self._idle
        index = await idle.get()
        try:
            if self._closed:
                raise UnavailableError("The sandbox is not running.", remedy="Call start() before run().")
            return await self._run_in(index, program)
        finally:
            idle.put_nowait(index)

    async def close(self) -> None:
        """Kill what runs and wait until it is gone; runs that wait for a zygote raise. Idempotent."""
        self._closed = True
        self._idle.put_nowait(-1)  # wakes one that waits; each wakes the next
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

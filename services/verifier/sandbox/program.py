"""The forked child: drops all rights, step by step, then runs the program. Never returns.

The order matters. Mounts come before Landlock (which forbids mounting), the user namespace before the limit on
processes (which it counts), the memory limit last but one (earlier steps may allocate), and the filter last.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from dataclasses import dataclass
from typing import NoReturn

from services.verifier.sandbox import kernel, script, seccomp, threads
from services.verifier.sandbox.frames import Request
from services.verifier.sandbox.room import SCRATCH, Room, import_folders

STARTED = b"+"
NUM_OPEN_FILES = 64
STACK_BYTES = 64 << 20
_STATUS = 3


@dataclass(frozen=True, slots=True)
class Stage:
    """What the zygote prepares once for all programs, which share every page that they do not write."""

    room: Room
    base: int
    """The zygote's own address space in bytes, which does not count against a program's limit."""
    filter: bytes | None
    """The seccomp filter, if the program's process id is known in advance."""


def prepare(room: Room, base: int) -> Stage:
    """Make this interpreter look like a fresh one to programs. Called in the zygote, after all imports."""
    for name in [name for name in sys.modules if name == "services" or name.startswith("services.")]:
        del sys.modules[name]
    sys.argv[:] = sys.orig_argv[:] = [script.PATH]
    sys.path[:] = import_folders(room)
    sys.path_importer_cache.clear()
    os.environ.clear()
    os.environ.update(HOME=SCRATCH, TMPDIR=SCRATCH, LANG="C.UTF-8")
    script.make_streams()
    script.lift_limits()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return Stage(room, base, seccomp.program(1) if room.isolated else None)


def run(stage: Stage, request: Request, descriptors: list[int], status: int) -> NoReturn:
    """Run the program whose source is the first descriptor.

    `status` is a socket for telling the zygote `STARTED`, or why the program was not started.
    """
    source_file, *standard = descriptors
    source = os.pread(source_file, os.fstat(source_file).st_size, 0)
    for target, descriptor in enumerate(standard):
        os.dup2(descriptor, target)
    os.dup2(status, _STATUS)
    try:
        _give_up(stage, request, source)
    except Exception as error:  # noqa: BLE001  # reported to the zygote; the program has not run
        os.write(_STATUS, f"{type(error).__name__}: {error}".encode()[:160])
        os._exit(1)
    os.write(_STATUS, STARTED)
    os.close(_STATUS)
    script.run(source)


def _give_up(stage: Stage, request: Request, source: bytes) -> None:
    room = stage.room
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    room.shut()
    if room.isolated:
        script.leave_copy(source)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    room.restrict_files()
    kernel.close_from(_STATUS + 1)
    limits = [
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, int(request.cpu_seconds) + 1, int(request.cpu_seconds) + 2),
        (resource.RLIMIT_FSIZE, request.output_bytes, request.output_bytes),
        (resource.RLIMIT_NOFILE, NUM_OPEN_FILES, NUM_OPEN_FILES),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_STACK, STACK_BYTES, resource.RLIM_INFINITY),
        (resource.RLIMIT_AS, stage.base + request.memory_bytes, stage.base + request.memory_bytes),
    ]
    if room.isolated:  # counted per user; in a bare room the user's other processes would count, so the zygote decides
        limits.append((resource.RLIMIT_NPROC, threads.MOST, threads.MOST))
    for kind, soft, hard in limits:
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            hard = most if hard == resource.RLIM_INFINITY else min(hard, most)
            soft = min(soft, hard)
        resource.setrlimit(kind, (soft, hard))
    if not room.isolated:
        threads.hand_over(_STATUS)
    seccomp.install(stage.filter or seccomp.program(os.getpid()))

"""The forked child: gives everything up, step by step, then runs the program. Never returns.

The order matters. Mounts come before Landlock (which forbids mounting), the user namespace before the limit on
processes (which is counted in it), memory last but one (each step before may allocate), the filter last.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import io
import linecache
import os
import resource
import signal
import sys
import threading
import traceback
import types
from dataclasses import dataclass
from typing import NoReturn

from services.verifier.sandbox import kernel, seccomp
from services.verifier.sandbox.room import SCRATCH, Room, import_folders
from services.verifier.sandbox.wire import Request

STARTED = b"+"
NAME = "<program>"
NUM_THREADS = 32
NUM_OPEN_FILES = 64
STACK_BYTES = 64 << 20
_STATUS = 3


@dataclass(frozen=True, slots=True)
class Stage:
    """What the zygote prepares once, so that each program finds it: every page that is not written is shared."""

    room: Room
    base: int
    """The zygote's own address space in bytes, which does not count against a program's."""
    main: types.ModuleType
    filter: bytes | None
    """The seccomp filter, where the program's process number is known beforehand."""


def prepare(room: Room, base: int) -> Stage:
    """Make this interpreter look to a program like a fresh one. In the zygote, when all else is imported."""
    for name in [name for name in sys.modules if name == "services" or name.startswith("services.")]:
        del sys.modules[name]
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv[:] = sys.orig_argv[:] = [NAME]
    sys.path[:] = import_folders(room)
    sys.path_importer_cache.clear()
    os.environ.clear()
    os.environ.update(HOME=SCRATCH, TMPDIR=SCRATCH, LANG="C.UTF-8")
    _make_streams()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return Stage(room, base, module, seccomp.program(1) if room.isolated else None)


def _make_streams() -> None:
    """Streams on descriptors 0 to 2, made while these are memory files as they will be in the child."""
    kept = [os.dup(descriptor) for descriptor in range(3)]
    for descriptor in range(3):
        file = os.memfd_create("stream")
        os.dup2(file, descriptor)
        os.close(file)
    for name, descriptor, mode, errors in (
        ("stdin", 0, "rb", "surrogateescape"),
        ("stdout", 1, "wb", "surrogateescape"),
        ("stderr", 2, "wb", "backslashreplace"),
    ):
        raw = open(descriptor, mode, closefd=False)  # noqa: SIM115
        text = io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=name == "stderr")
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
    for descriptor, original in enumerate(kept):
        os.dup2(original, descriptor)
        os.close(original)


def run(stage: Stage, request: Request, descriptors: list[int], status: int) -> NoReturn:
    """Run the program whose source is the first descriptor.

    `status` is a pipe on which the zygote reads STARTED, or why we did not get there.
    """
    source_file, *standard = descriptors
    source = os.pread(source_file, os.fstat(source_file).st_size, 0)
    for target, descriptor in enumerate(standard):
        os.dup2(descriptor, target)
    os.dup2(status, _STATUS)
    try:
        _give_up(stage, request)
    except Exception as error:  # noqa: BLE001  # the child's border: the reason goes to the zygote, nothing has run
        os.write(_STATUS, f"{type(error).__name__}: {error}".encode()[:160])
        os._exit(1)
    os.write(_STATUS, STARTED)
    os.close(_STATUS)
    _execute(stage.main, source)


def _give_up(stage: Stage, request: Request) -> None:
    room = stage.room
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    room.shut()
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    room.restrict_files()
    kernel.close_from(_STATUS + 1)
    limits = (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, int(request.cpu_seconds) + 1, int(request.cpu_seconds) + 2),
        (resource.RLIMIT_FSIZE, request.output_bytes, request.output_bytes),
        (resource.RLIMIT_NOFILE, NUM_OPEN_FILES, NUM_OPEN_FILES),
        (resource.RLIMIT_NPROC, room.num_tasks + NUM_THREADS, room.num_tasks + NUM_THREADS),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_STACK, STACK_BYTES, resource.RLIM_INFINITY),
        (resource.RLIMIT_AS, stage.base + request.memory_bytes, stage.base + request.memory_bytes),
    )
    for kind, soft, hard in limits:
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            hard = most if hard == resource.RLIM_INFINITY else min(hard, most)
            soft = min(soft, hard)
        resource.setrlimit(kind, (soft, hard))
    seccomp.install(stage.filter or seccomp.program(os.getpid()))


def _execute(module: types.ModuleType, source: bytes) -> NoReturn:
    """Run the source as a Python script would be, in a fresh `__main__`; the exit code is Python's.

    What the program raises or breaks here is its own affair: it changes the exit code, and never more than that.
    """
    gc.enable()
    code = 0
    try:
        exec(compile(source, NAME, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as stop:
        code = _exit_code(stop)
    except BaseException as error:  # noqa: BLE001
        code = 1
        _show(error, source)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001
        code = code or 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: BLE001
            code = code or 120  # what Python itself exits with when its output cannot be flushed
    os._exit(code)


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    try:
        print(stop.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001
        pass
    return 1


def _show(error: BaseException, source: bytes) -> None:
    """The traceback, with the program's lines and without our frames."""
    try:
        text = source.decode("utf-8", "replace")
        linecache.cache[NAME] = (len(text), None, text.splitlines(keepends=True), NAME)
        here = error.__traceback__.tb_next if error.__traceback__ is not None else None
        traceback.print_exception(type(error), error, here)
    except BaseException:  # noqa: BLE001
        pass

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
from typing import Any, NoReturn

from services.verifier.sandbox import kernel, seccomp
from services.verifier.sandbox.room import Room
from services.verifier.sandbox.wire import Request

STARTED = b"+"
NAME = "<program>"
NUM_THREADS = 32
NUM_OPEN_FILES = 64
STACK_BYTES = 64 << 20
_STATUS = 3


def run(room: Room, request: Request, descriptors: list[int], status: int, base: int, folders: list[str]) -> NoReturn:
    """Run the program whose source is the first descriptor.

    `status` is a pipe on which the zygote reads STARTED, or why we did not get there. `base` is the zygote's own
    address space in bytes, which does not count against the program's.
    """
    source_file, *standard = descriptors
    source = os.pread(source_file, os.fstat(source_file).st_size, 0)
    for target, descriptor in enumerate(standard):
        os.dup2(descriptor, target)
    os.dup2(status, _STATUS)
    try:
        _give_up(room, request, base)
    except Exception as error:  # the child's border: the reason goes to the zygote, nothing has run
        os.write(_STATUS, f"{type(error).__name__}: {error}".encode()[:160])
        os._exit(1)
    os.write(_STATUS, STARTED)
    os.close(_STATUS)
    _execute(source, folders)


def _give_up(room: Room, request: Request, base: int) -> None:
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
        (resource.RLIMIT_AS, base + request.memory_bytes, base + request.memory_bytes),
    )
    for kind, soft, hard in limits:
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            hard = most if hard == resource.RLIM_INFINITY else min(hard, most)
            soft = min(soft, hard)
        resource.setrlimit(kind, (soft, hard))
    seccomp.install(seccomp.program(os.getpid()))


def _execute(source: bytes, folders: list[str]) -> NoReturn:
    """Run the source as a Python script would be, in a fresh `__main__`; the exit code is Python's."""
    module = _fresh_main(folders)
    code = 0
    try:
        exec(compile(source, NAME, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as stop:
        code = _exit_code(stop)
    except BaseException as error:
        code = 1
        _show(error, source)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        code = code or 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            code = code or 120  # what Python itself exits with when its output cannot be flushed
    os._exit(code)


def _fresh_main(folders: list[str]) -> types.ModuleType:
    for name in [name for name in sys.modules if name == "services" or name.startswith("services.")]:
        del sys.modules[name]
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = [NAME]
    sys.path[:] = folders
    sys.stdin = sys.__stdin__ = _text(0, "r", "surrogateescape")
    sys.stdout = sys.__stdout__ = _text(1, "w", "surrogateescape")
    sys.stderr = sys.__stderr__ = _text(2, "w", "backslashreplace", line_buffering=True)
    os.environ.clear()
    os.environ.update(HOME="/tmp", TMPDIR="/tmp", LANG="C.UTF-8")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()
    return module


def _text(descriptor: int, mode: str, errors: str, **options: Any) -> io.TextIOWrapper:
    raw = open(descriptor, mode + "b", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, **options)


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    try:
        print(stop.code, file=sys.stderr)
    except BaseException:
        pass
    return 1


def _show(error: BaseException, source: bytes) -> None:
    """The traceback, with the program's lines and without our frames."""
    try:
        text = source.decode("utf-8", "replace")
        linecache.cache[NAME] = (len(text), None, text.splitlines(keepends=True), NAME)
        here = error.__traceback__.tb_next if error.__traceback__ is not None else None
        traceback.print_exception(type(error), error, here)
    except BaseException:
        pass

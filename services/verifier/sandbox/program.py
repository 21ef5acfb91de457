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
from typing import Any, NoReturn

from services.verifier.sandbox import kernel, seccomp
from services.verifier.sandbox.room import SCRATCH, Room, import_folders
from services.verifier.sandbox.wire import Request

STARTED = b"+"
PATH = f"{SCRATCH}/program.py"
"""Where programs believe to be; isolated rooms hold their source there."""
NUM_THREADS = 32
NUM_OPEN_FILES = 64
LARGEST_THREAD_STACK = 64 << 20
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
    module.__dict__.update(__builtins__=builtins, __file__=PATH, __cached__=None, __annotations__={})
    sys.modules["__main__"] = module
    sys.argv[:] = sys.orig_argv[:] = [PATH]
    sys.path[:] = import_folders(room)
    sys.path_importer_cache.clear()
    os.environ.clear()
    os.environ.update(HOME=SCRATCH, TMPDIR=SCRATCH, LANG="C.UTF-8")
    _make_streams()
    _lift_limits()
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
        ("stdin", 0, "r", "surrogateescape"),
        ("stdout", 1, "w", "surrogateescape"),
        ("stderr", 2, "w", "backslashreplace"),
    ):
        # As Python's own start-up makes them (create_stdio in pylifecycle.c), names and modes included.
        buffer: Any = open(descriptor, f"{mode}b", closefd=False)  # noqa: SIM115
        buffer.raw.name = f"<{name}>"
        text: Any = io.TextIOWrapper(
            buffer, encoding="utf-8", errors=errors, newline="\n", line_buffering=name == "stderr"
        )
        text.mode = mode
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
    for descriptor, original in enumerate(kept):
        os.dup2(original, descriptor)
        os.close(original)


def _lift_limits() -> None:
    """Lift what protects Python's users from themselves: the sandbox's own limits hold anyway."""
    sys.set_int_max_str_digits(0)
    set_size = threading.stack_size

    def stack_size(size: int = 0) -> int:
        # Programs ask for half a gigabyte so that recursion cannot fail, and touch next to nothing of it. Here address
        # space counts as memory, and Python's own recursion does not use this stack.
        return set_size(min(size, LARGEST_THREAD_STACK))

    threading.stack_size = stack_size


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
    _execute(stage, source)


def _give_up(stage: Stage, request: Request) -> None:
    room = stage.room
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    room.shut()
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
    if room.isolated:  # counted by user: elsewhere the user's other processes would count, so there the zygote looks
        limits.append((resource.RLIMIT_NPROC, NUM_THREADS, NUM_THREADS))
    for kind, soft, hard in limits:
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            hard = most if hard == resource.RLIM_INFINITY else min(hard, most)
            soft = min(soft, hard)
        resource.setrlimit(kind, (soft, hard))
    seccomp.install(stage.filter or seccomp.program(os.getpid()))


def _execute(stage: Stage, source: bytes) -> NoReturn:
    """Run the source as a Python script would be, in a fresh `__main__`; the exit code is Python's.

    What the program raises or breaks here is its own affair: it changes the exit code, and never more than that.
    """
    gc.enable()
    code = 0
    try:
        _place(stage.room, source)
        exec(compile(source, PATH, "exec", dont_inherit=True), stage.main.__dict__)
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
    flushed = _flush(sys.stdout, sys.stderr)
    os._exit(max(flushed, _destroy(stage.main)) or code)


def _place(room: Room, source: bytes) -> None:
    """Make what a script takes for granted: its own file, and standard streams by path."""
    if room.isolated:
        with open(PATH, "wb") as file:
            file.write(source)
    if b"/dev/" in source or b"/proc/self/fd/" in source:
        open_streams_by_path()


def open_streams_by_path() -> None:
    """Let `open("/dev/stdin")` and its like reach the program's own descriptors: the room has no such files."""
    known = {f"/dev/{name}": number for number, name in enumerate(("stdin", "stdout", "stderr"))}
    known |= {f"{folder}{number}": number for folder in ("/dev/fd/", "/proc/self/fd/") for number in range(3)}
    open_file, open_descriptor = io.open, os.open

    def open_(file: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(file, str) and file in known:
            file = os.dup(known[file])
        return open_file(file, *arguments, **named)

    def os_open(path: Any, *arguments: Any, **named: Any) -> int:
        if isinstance(path, str) and path in known:
            return os.dup(known[path])
        return open_descriptor(path, *arguments, **named)

    builtins.open = io.open = open_
    os.open = os_open


def _flush(*streams: Any) -> int:
    """The exit code that Python gives where its output cannot be flushed, else 0."""
    code = 0
    for stream in streams:
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:  # noqa: BLE001
            code = 120
    return code


def _destroy(main: types.ModuleType) -> int:
    """What Python does to a script's globals at the end: files that it left open are flushed as they are destroyed."""
    try:
        for name in [name for name in main.__dict__ if name != "__builtins__"]:
            main.__dict__[name] = None
        gc.collect()
    except BaseException:  # noqa: BLE001
        pass
    return _flush(sys.__stdout__, sys.__stderr__)


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
        linecache.cache[PATH] = (len(text), None, text.splitlines(keepends=True), PATH)
        here = error.__traceback__.tb_next if error.__traceback__ is not None else None
        traceback.print_exception(type(error), error, here)
    except BaseException:  # noqa: BLE001
        pass

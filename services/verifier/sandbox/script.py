"""Runs a source as `python program.py` would: its streams, `__main__`, uncaught exceptions, the interpreter's end.

A program in the sandbox ends with `_exit`, because finalizing a whole interpreter would cost as much as the rest of a
run. The parts of finalization that programs rely on happen here, in CPython's order (Py_FinalizeEx): threads are
joined, exit functions called, standard streams flushed, the program's objects finalized, and buffered file data
written.

All of this runs after all rights were dropped, and the program may patch any of it. By that it can only change its own
exit code and outputs.
"""

from __future__ import annotations

import _io
import _thread
import atexit
import gc
import io
import linecache
import os
import sys
import threading
import traceback
import types
from typing import Final, NoReturn

from services.verifier.sandbox import devices
from services.verifier.sandbox.room import SCRATCH

PATH: Final = f"{SCRATCH}/program.py"
"""The program's `__file__`. With namespaces, the source can be read there too."""
_FLUSH_FAILED: Final = 120
"""Python's own exit code if standard output cannot be flushed."""
_SMALL: Final = 1 << 20
_LARGEST_THREAD_STACK: Final = 64 << 20
_streams: list[io.TextIOWrapper] = []
_exit = os._exit


def make_streams() -> None:
    """In the zygote, create streams on descriptors 0 to 2 while these are memory files, as they will be in the child.

    Names, modes and the handling of line ends follow Python's own start-up (create_stdio in pylifecycle.c).
    """
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
        binary = open(descriptor, mode + "b", closefd=False)  # noqa: SIM115
        binary.raw.name = f"<{name}>"  # type: ignore[attr-defined]
        text = io.TextIOWrapper(binary, encoding="utf-8", errors=errors, newline="\n", line_buffering=name == "stderr")
        text.mode = mode  # type: ignore[misc]
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
        _streams.append(text)
    for descriptor, original in enumerate(kept):
        os.dup2(original, descriptor)
        os.close(original)


def lift_limits() -> None:
    """In the zygote, lift limits that protect Python's users from themselves. The sandbox's own limits still apply."""
    sys.set_int_max_str_digits(0)
    set_size = threading.stack_size

    def stack_size(size: int = 0, /) -> int:
        # Programs ask for half a gigabyte so that recursion cannot fail, but use almost none of it. Here address space
        # counts as memory, and Python's own recursion does not use this stack.
        return set_size(min(size, _LARGEST_THREAD_STACK))

    threading.stack_size = _thread.stack_size = stack_size


def leave_copy(source: bytes) -> None:
    """In the child, write the source to the scratch folder for `open(__file__)`, unless it is too large for it."""
    if len(source) <= _SMALL:
        descriptor = os.open(PATH, os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(descriptor, source)
        os.close(descriptor)


def run(source: bytes) -> NoReturn:
    """Run the source and exit this process with Python's exit code."""
    gc.enable()
    lines = source.decode("utf-8", "replace").splitlines(keepends=True)
    linecache.cache[PATH] = (len(source), None, lines, PATH)
    if devices.mentioned(source):
        devices.redirect()
    code = _run_main(source)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001
        pass
    flushed = _flush(getattr(sys, "stdout", None))
    _flush(getattr(sys, "stderr", None))
    flushed &= _finalize()
    _exit(code if flushed else _FLUSH_FAILED)


def _run_main(source: bytes) -> int:
    """Run the program's code and return its exit code. Afterwards none of our frames refers to its names."""
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=sys.modules["builtins"], __file__=PATH, __cached__=None, __annotations__={})
    try:
        exec(compile(source, PATH, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as stop:
        return _exit_code(stop)
    except BaseException as error:  # noqa: BLE001
        _show(error)
        return 1
    return 0


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        fits = -(1 << 63) <= int.__index__(stop.code) < 1 << 63
        return int.__and__(stop.code, 0xFF) if fits else 0xFF
    try:
        print(stop.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001
        pass
    return 1


def _show(error: BaseException) -> None:
    """Call the program's `sys.excepthook`; Python's own gets the traceback without our frames."""
    try:
        hook = sys.excepthook
        here = error.__traceback__.tb_next if error.__traceback__ is not None else None
        (traceback.print_exception if hook is sys.__excepthook__ else hook)(type(error), error, here)
    except BaseException:  # noqa: BLE001
        pass


def _flush(stream: object) -> bool:
    try:
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()  # type: ignore[attr-defined]
    except BaseException:  # noqa: BLE001
        return False
    return True


def _finalize() -> bool:
    """Release the program's objects, whose finalizers may print or write, then write buffered file data."""
    try:
        sys.stdin, sys.stdout, sys.stderr = _streams
        sys.modules.pop("__main__", None)
        gc.collect()
        for thing in gc.get_objects():
            if _io._IOBase in type(thing).__mro__:
                _flush(thing)
    except BaseException:  # noqa: BLE001
        pass
    flushed = [_flush(stream) for stream in _streams[1:]]
    return flushed[0]

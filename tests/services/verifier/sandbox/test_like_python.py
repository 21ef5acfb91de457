"""Programs have the same output and exit code in the sandbox as with `python program.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.runtime.process import LoopThread
from services.verifier.sandbox.sandbox import Program, Sandbox
from tests.services.verifier.sandbox.conftest import start

STDIN = "5\nb é\r\n\r".encode()

STREAMS = {
    "attributes": """
import sys
for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(stream.name, stream.mode, stream.fileno(), stream.encoding, stream.isatty(), stream is sys.__stdout__)
    print(stream.buffer.name, stream.buffer.mode, stream.line_buffering)
""",
    "original_output": """
import io, sys
sys.stdout = io.StringIO()
print(1)
sys.__stdout__.write(sys.stdout.getvalue())
""",
    "kept_output": "import io, sys; real = sys.stdout; sys.stdout = io.StringIO(); print(1); real.write('x')",
    "original_input": "import sys; sys.stdin = None; print(list(sys.__stdin__))",
    "descriptor_written": "import os; os.write(1, b'x'); print('y')",
    "descriptor_read": "import os; print(os.read(0, os.fstat(0).st_size))",
    "input_by_number": "print(open(0).read())",
    "output_by_number": "out = open(1, 'w'); print('first'); out.write('42')",
    "output_kept_open": "f = open(1, 'w', closefd=False); print('a'); f.write('42'); print('b')",
    "output_of_os": "import os; out = os.fdopen(1, 'w', 1 << 16); out.write('42\\n')",
    "output_of_io": "import io; out = io.BufferedWriter(io.FileIO(1, 'w', closefd=False)); out.write(b'42')",
    "output_replaced": "import sys; sys.stdout = open(1, 'w', buffering=1 << 20); print('hi')",
    "output_reencoded": "import sys; sys.stdout.reconfigure(encoding='latin-1'); print('é')",
    "output_closed": "import sys; print(1); sys.stdout.close()",
    "output_gone": "import os; print(1); os.close(1)",
    "output_deleted": "import os, sys; del sys.stdout; os.write(1, b'x')",
    "output_none": "import sys; sys.stdout = None; print(1)",
    "output_kept_elsewhere": "import builtins, sys; sys.out = open(1, 'w'); sys.out.write('x')",
    "output_duplicated": "import os; f = os.fdopen(os.dup(1), 'w'); f.write('dup'); os.close(1)",
    "output_to_errors": "import os, sys; os.dup2(2, 1); print('x'); sys.stderr.write('y')",
    "bytes_and_text": "import sys; sys.stdout.buffer.write(b'bytes\\n'); print('text'); sys.stdout.flush()",
    "line_ends": "import sys; print([*sys.stdin], sys.stdin.newlines); sys.stdout.write('a\\r\\nb')",
    "devices": """
print(open("/dev/stdin").read())
open("/dev/stdout", "w").write("q")
open("/dev/fd/1", "w").write("r")
""",
    "device_by_path": "import os, pathlib; print(pathlib.Path('/dev/stdin').read_text(), os.path.exists('/dev/stdin'))",
    "lines_and_bytes": "import sys; print(sys.stdin.buffer.readline(), next(sys.stdin))",
    "snowman": "print('\\N{SNOWMAN}', '\\udc80'.isprintable())",
    "prompt": "print(int(input('n: ')))",
    "lines": "import sys\nfor line in iter(sys.stdin.readline, ''): print(line, end='')",
    "file_input": "import fileinput; print([line for line in fileinput.input()])",
    "mapped_input": "import mmap; print(mmap.mmap(0, 0, prot=mmap.PROT_READ).read())",
    "selected_input": "import select, sys; print(bool(select.select([sys.stdin], [], [], 0)[0]))",
    "wrapped": """
import os, sys
from io import BytesIO, IOBase
class Fast(IOBase):
    def __init__(self, file):
        self.number, self.buffer = file.fileno(), BytesIO()
        self.writable = "x" in file.mode or "r" not in file.mode
        self.write = lambda text: self.buffer.write(text.encode())
        self.readline = lambda: os.read(self.number, 2).decode()
    def flush(self):
        if self.writable:
            os.write(self.number, self.buffer.getvalue())
            self.buffer.truncate(0), self.buffer.seek(0)
sys.stdin, sys.stdout = Fast(sys.stdin), Fast(sys.stdout)
print(sys.stdin.readline().rstrip())
""",
}

ENDS = {
    "text": "import sys; sys.exit('bad')",
    "number": "import sys; sys.exit(3)",
    "true": "import sys; sys.exit(True)",
    "huge": "import sys; sys.exit(2 ** 70)",
    "negative": "import sys; sys.exit(-1)",
    "tuple": "raise SystemExit(('a', 1))",
    "nothing": "raise SystemExit",
    "hard": "import os; print('lost'); os._exit(4)",
    "exception": "print(1); 1 / 0",
    "hook": "import sys; sys.excepthook = lambda *found: print('hook', found[0].__name__); 1 / 0",
    "exit_functions": "import atexit; atexit.register(print, 'end'); atexit.register(lambda: 1 / 0); print('go')",
    "destructor": "class A:\n    def __del__(self): print('bye', x)\nx = 3\na = A()",
    "generator": "def g():\n    try: yield 1\n    finally: print('closed')\nx = g(); next(x)",
    "weak": "import weakref\nclass A: pass\na = A(); weakref.finalize(a, print, 'final')",
    "threads": "import threading as t, time\nt.Thread(target=lambda: (time.sleep(0.05), print('t'))).start(); print(1)",
    "daemon": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start(); print(1)",
    "thread_error": "import threading\nt = threading.Thread(target=lambda: 1 / 0); t.start(); t.join(); print(1)",
}

MODULE = {
    "names": "print(__name__, __doc__, __package__, __spec__, __annotations__, __builtins__.__name__)",
    "file": "import os, sys; print(os.path.basename(__file__), len(sys.argv))",
    "annotated": "x: int = 3\nprint(__annotations__, __cached__)",
    "itself": "import __main__; __main__.z = 4; print(z)",
    "source": "import inspect\ndef f(): return 1\nprint(inspect.getsource(f))",
    "pickle": "import pickle\nclass A: x = 42\nprint(pickle.loads(pickle.dumps(A())).x)",
    "dataclass": """
from __future__ import annotations
import dataclasses
@dataclasses.dataclass
class P: x: int
print(P(1))
""",
    "unit_test": "import unittest\nclass T(unittest.TestCase):\n    def test(self): pass\nunittest.main()",
    "site_names": "print(exit.__class__.__name__, help.__class__.__name__, copyright is not None)",
    "recursion": "import sys; sys.setrecursionlimit(10 ** 6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50_000))",
    "stack": """
import sys, threading
sys.setrecursionlimit(1 << 25); threading.stack_size(512 << 20)
def f(n): return n and 1 + f(n - 1)
t = threading.Thread(target=lambda: print(f(50_000))); t.start(); t.join()
""",
    "stack_limit": "import resource as r; r.setrlimit(r.RLIMIT_STACK, (1 << 28, r.RLIM_INFINITY)); print('ok')",
    "unblocked": "import os; os.set_blocking(0, False); print(os.read(0, 1))",
    "pool": "from concurrent.futures import ThreadPoolExecutor as P\nprint(sum(P(4).map(int, '1234')))",
    "many_threads": """
import threading
for _ in range(100):
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
print(1)
""",
}

ISOLATED = {
    "own_text": "print(open(__file__).read())",
    "own_folder": "import os; print(os.listdir(), os.getcwd() == os.path.dirname(os.path.abspath(__file__)))",
    "own_module": "open('m.py', 'w').write('x = 5'); import m; print(m.x)",
    "temporary": "import tempfile\nwith tempfile.TemporaryFile('w+') as f: print(f.write('a'))",
}


@pytest.fixture(scope="module", params=[True, False], ids=["namespaces", "bare"])
def sandbox(request: pytest.FixtureRequest, loop: LoopThread) -> Iterator[Sandbox]:
    started = start(loop, num_zygotes=1, namespaces=request.param)
    yield started
    loop.call(started.close())


@pytest.mark.parametrize(
    "source", [pytest.param(source, id=name) for name, source in {**STREAMS, **ENDS, **MODULE}.items()]
)
def test_same_as_python(sandbox: Sandbox, loop: LoopThread, source: str, tmp_path: Path) -> None:
    compare(sandbox, loop, source, tmp_path)


@pytest.mark.parametrize("source", [pytest.param(s, id=n) for n, s in ISOLATED.items()])
def test_same_as_python_with_a_folder(sandbox: Sandbox, loop: LoopThread, source: str, tmp_path: Path) -> None:
    if not sandbox.layers.isolated or not sandbox._namespaces:
        pytest.skip("a program has its own folder only with namespaces")
    compare(sandbox, loop, source, tmp_path)


def test_numbers_of_any_length(sandbox: Sandbox, loop: LoopThread) -> None:
    """Python's limit of 4300 digits, which graders lift, is lifted."""
    result = loop.call(sandbox.run(Program("x = int(input()); print(x + 1)", stdin=b"9" * 5000)))
    assert result.stdout == b"1" + b"0" * 5000 + b"\n"


def compare(sandbox: Sandbox, loop: LoopThread, source: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(source)
    (tmp_path.parent / "input").write_bytes(STDIN)
    with (tmp_path.parent / "input").open("rb") as given:
        real = subprocess.run(
            [sys.executable, "program.py"],
            stdin=given,
            capture_output=True,
            cwd=tmp_path,
            env={"LANG": "C.UTF-8"},
            check=False,
        )
    ours = loop.call(sandbox.run(Program(source, stdin=STDIN)))
    assert (ours.stdout, ours.exit_code) == (real.stdout, real.returncode), ours.stderr.decode()

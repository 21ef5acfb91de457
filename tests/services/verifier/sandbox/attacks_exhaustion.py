"""Exhaustion: processor, clock, memory, threads, processes, descriptors, disk, output."""

from __future__ import annotations

import textwrap

from tests.services.verifier.sandbox.corpus import STOPPED, Attack, attacks, call, refused

_CPU = {
    "endless_loop": "while True: pass",
    "endless_loop_in_c": "sum(iter(int, 1))",
    "one_long_instruction": "x = 9 ** (9 ** 8)",
    "regular_expression": "import re; re.match(r'(a+)+$', 'a' * 64 + 'b')",
    "signals_ignored": """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, lambda *a: None)
            except (OSError, ValueError):
                pass
        while True: pass
    """,
    "exceptions_swallowed": """
        while True:
            try:
                raise KeyboardInterrupt
            except BaseException:
                pass
    """,
    "threads_busy": """
        import threading
        def spin():
            while True: pass
        for _ in range(8): threading.Thread(target=spin).start()
        spin()
    """,
    "exit_never": """
        import atexit
        def spin():
            while True: pass
        atexit.register(spin)
    """,
    "limit_raised": """
        import resource
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            print("ESCAPED")
        except (ValueError, OSError):
            pass
        while True: pass
    """,
    "own_limit_of_zero": """
        import resource, signal
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (0, 0))
            print("ESCAPED")
        except (ValueError, OSError):
            pass
        while True: pass
    """,
    "every_limit_of_zero": """
        import resource, signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        for kind in range(16):
            try:
                resource.setrlimit(kind, (0, 0))
            except (ValueError, OSError):
                pass
        while True: pass
    """,
    "memory_error_swallowed": """
        while True:
            try:
                x = bytearray(1 << 40)
            except MemoryError:
                pass
    """,
}

_CLOCK = {
    "sleep": "import time; time.sleep(60)",
    "wait_for_lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "wait_for_pipe": "import os; reading, writing = os.pipe(); os.read(reading, 1)",
    "thread_outlives_main": "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
    "stop_oneself": "import ctypes, signal, time; signal.raise_signal(signal.SIGSTOP); time.sleep(60)",
    "stop_as_a_terminal_would": """
        import signal, time
        for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            signal.raise_signal(number)
        time.sleep(60)
    """,
    "sleep_in_many_threads": """
        import threading, time
        for _ in range(20):
            threading.Thread(target=time.sleep, args=(60,)).start()
    """,
}

_MEMORY = {
    "one_block": "x = bytearray(1 << 30)",
    "many_blocks": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "big_string": "x = 'x'\nwhile True: x += x",
    "memory_disk_and_pipes": """
        import os
        try:
            with open("full", "wb") as file:
                file.write(bytes(900_000))
        except OSError:
            pass
        kept = [os.pipe() for _ in range(20)]
        for _, writing in kept:
            os.set_blocking(writing, False)
            os.write(writing, bytes(65536))
        x = []
        while True: x.append(bytearray(1 << 16))
    """,
    "zip_bomb": """
        import zlib
        packed = zlib.compress(bytes(1 << 20))
        x = b"".join(zlib.decompress(packed) for _ in range(1000))
    """,
}

_BOUNDED = {
    "map_shared": refused("import mmap; mmap.mmap(-1, 1 << 30)[0]"),
    "memory_file": refused("import os; os.memfd_create('x')"),
    "memory_file_by_call": call("memfd_create", "b'x'", "0"),
    "system_v_memory": call("shmget", "0", "4096", "0o1600"),
    "system_v_queue": call("msgget", "0", "0o1600"),
    "posix_shared_memory": refused("""
        from multiprocessing import shared_memory
        shared_memory.SharedMemory(create=True, size=9)
    """),
    "lock_memory": call("mlock", "ctypes.c_long(id(ctypes) & ~4095)", "4096"),
    "kernel_timers": call("timer_create", "1", "0", "ctypes.create_string_buffer(8)"),
    "watches": call("inotify_init1", "0"),
    "address_space_raised": refused("import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))"),
    "pipes_enlarged": refused("import fcntl, os; fcntl.fcntl(os.pipe()[0], 1031, 1 << 20)"),
    "sparse_file": refused("f = open('x', 'wb'); f.seek(1 << 40); f.write(b'x'); f.flush()"),
}

_COUNTED = {
    "fill_disk": (
        """
        import itertools
        written = 0
        try:
            for i in itertools.count():
                file = open(f"f{i}", "wb", buffering=0)
                while file.tell() < 900_000:
                    written += file.write(bytes(90_000))
        except OSError:
            print(written)
        """,
        16 << 20,
    ),
    "fill_folder": (
        """
        count = 0
        try:
            while True:
                open(f"f{count}", "w").close()
                count += 1
        except OSError:
            print(count)
        """,
        1024,
    ),
    "nest_folders": (
        """
        import os
        count = 0
        try:
            while True:
                os.mkdir("d")
                os.chdir("d")
                count += 1
        except OSError:
            print(count)
        """,
        1024,
    ),
    "open_files": (
        """
        import os
        kept = []
        try:
            while True:
                kept.append(os.dup(1))
        except OSError:
            print(len(kept))
        """,
        64,
    ),
    "thread_bomb": (
        """
        import os, threading
        count = 0
        threading.stack_size(65536)
        hold = threading.Event()
        try:
            while True:
                threading.Thread(target=hold.wait, daemon=True).start()
                count += 1
        except RuntimeError:
            os.write(1, str(count).encode())
            os._exit(0)
        """,
        32,
    ),
    "thread_bomb_from_threads": (
        """
        import os, threading, time
        threading.stack_size(65536)
        def breed():
            try:
                for _ in range(8): threading.Thread(target=breed, daemon=True).start()
            except RuntimeError:
                pass
            time.sleep(60)
        threading.Thread(target=breed, daemon=True).start()
        most = 0
        for _ in range(40):
            most = max(most, len(threading.enumerate()))
            time.sleep(0.001)
        os.write(1, str(most).encode())
        os._exit(0)
        """,
        63,
    ),
    "fork_bomb": (
        """
        import os
        count = 0
        for _ in range(1000):
            try:
                os.fork()
                count += 1
            except OSError:
                pass
        print(count)
        """,
        0,
    ),
}

_OUTPUT = {
    "print_forever": "while True: print('x' * 9999)",
    "complain_forever": "import sys\nwhile True: sys.stderr.write('x' * 9999)",
}
_OUTPUT_IGNORING_ERRORS = """
    import os
    while True:
        try:
            os.write(1, b'x' * 65536)
        except OSError:
            pass
"""

_CRASHES = {
    "null_pointer": "import ctypes; ctypes.string_at(0)",
    "deep_recursion": "import sys; sys.setrecursionlimit(10 ** 9)\ndef f(): return f()\nf()",
    "deep_recursion_in_c": "x = []\nfor _ in range(10 ** 6): x = [x]\nprint(len(repr(x)))",
    "deep_source": "(" * 5000 + ")" * 5000,
    "deep_expression": "eval('-' * 500_000 + '1')",
    "stack_in_c": """
        import ctypes
        back = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
        nested = back(lambda n: nested(n + 1))
        import sys
        sys.setrecursionlimit(10 ** 9)
        nested(0)
    """,
    "signal_on_a_bad_stack": """
        import ctypes, signal, struct
        libc = ctypes.CDLL(None)
        memory = ctypes.create_string_buffer(struct.pack("QixxxxQ", 4096, 0, 1 << 16))
        libc.sigaltstack(memory, None)
        import faulthandler
        faulthandler.enable()
        ctypes.string_at(0)
    """,
    "file_cut_under_a_map": """
        import mmap, os
        with open("x", "wb+") as file:
            file.write(bytes(8192))
            file.flush()
            view = mmap.mmap(file.fileno(), 8192)
            os.ftruncate(file.fileno(), 0)
            view[0]
    """,
    "null_byte_in_source": "print(1)\0print(2)",
    "wrong_syntax": "def (:",
    "corrupt_interpreter": "import ctypes; ctypes.memset(id(int), 0, 400)",
}

ATTACKS = [
    *attacks("exhaustion", _CPU, frozenset({"timeout_cpu"}), "cpu_time"),
    *attacks("exhaustion", _CLOCK, frozenset({"timeout_wall"}), "wall_time"),
    *attacks("exhaustion", _MEMORY, frozenset({"memory", "timeout_cpu"})),
    *attacks("exhaustion", _BOUNDED, STOPPED),
    *(
        Attack(name, "exhaustion", textwrap.dedent(source), most_printed=most)
        for name, (source, most) in _COUNTED.items()
    ),
    *attacks("exhaustion", _OUTPUT, frozenset({"output_limit"}), "output"),
    *attacks("exhaustion", {"write_forever": _OUTPUT_IGNORING_ERRORS}, frozenset({"timeout_cpu"}), "cpu_time"),
    *attacks("exhaustion", _CRASHES, STOPPED),
]

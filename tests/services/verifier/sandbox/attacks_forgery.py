"""Forgery and orphans: lies about a run's result, and attempts to outlive the run."""

from __future__ import annotations

from tests.services.verifier.sandbox.corpus import DONE, EXITED, KILLED, STOPPED, attacks, call, refused

_FORGERY = {
    "exit_early": "import sys; print('PASS'); sys.exit(0)",
    "exit_hard": "import os; os.write(1, b'PASS'); os._exit(0)",
    "write_to_guessed_descriptors": """
        import os
        for number in range(3, 1024):
            try:
                os.write(number, b"+" + bytes(400))
                print("ESCAPED", number)
            except OSError:
                pass
    """,
    "answer_for_the_zygote": """
        import gc, os, socket
        for thing in gc.get_objects():
            if isinstance(thing, socket.socket):
                try:
                    thing.send(bytes(200))
                    print("ESCAPED")
                except OSError as error:
                    print("refused", error)
    """,
    "put_a_file_where_the_socket_was": """
        import gc, os, socket
        for thing in gc.get_objects():
            if isinstance(thing, socket.socket) and thing.fileno() > 0:
                try:
                    os.dup2(1, thing.fileno())
                except OSError:
                    pass
    """,
    "patch_builtins": """
        import builtins, json
        builtins.print = lambda *a, **k: None
        builtins.len = lambda x: 42
        json.dumps = lambda *a, **k: "PASS"
        type(json).__eq__ = lambda a, b: True
    """,
    "patch_the_runner": """
        import os, sys
        os._exit = lambda code: None
        frame = sys._getframe(1)
        frame.f_globals["_exit_code"] = lambda stop: 0
        frame.f_globals["threading"] = None
        raise SystemExit(3)
    """,
    "rewrite_input": refused("import os; os.write(0, b'PASS')"),
    "unseal_input": refused("import fcntl; fcntl.fcntl(0, 1033, 0)"),
    "own_the_terminal": refused("import fcntl; fcntl.ioctl(0, 0x5412, b'x')"),
    "close_output": "import os; os.close(1); os.close(2); os.close(0); print('PASS')",
    "endless_output_object": """
        import sys
        class Stream:
            def write(self, text): raise SystemExit(0)
            def flush(self): raise SystemExit(0)
        sys.stdout = sys.stderr = Stream()
        raise ValueError("x")
    """,
    "exception_that_raises": """
        class Evil(BaseException):
            def __str__(self): raise Evil()
            __repr__ = __str__
        raise Evil()
    """,
    "exit_with_object": """
        class Code(int):
            def __and__(self, other): return self
            def __index__(self): raise SystemExit(0)
        raise SystemExit(Code(0))
    """,
}

_FEIGNED_FAULTS = {
    "kill_oneself": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "kill_oneself_by_call": "import signal; signal.raise_signal(signal.SIGKILL)",
    "kill_thread_by_call": call("tgkill", "os.getpid()", "os.getpid()", "9"),
    "kill_by_timer": call(
        "timer_create", "1", "ctypes.create_string_buffer(bytes(8) + b'\\x09' + bytes(55))", "bytes(8)"
    ),
    "kill_by_queued_signal": call("rt_sigqueueinfo", "os.getpid()", "9", "ctypes.create_string_buffer(128)"),
    "kill_thread_by_old_call": call("tkill", "os.getpid()", "9"),
    "kill_by_handle": call("pidfd_send_signal", "0", "9", "0", "0"),
    "kill_by_input": """
        import fcntl, os
        reading, writing = os.pipe()
        for command, argument in ((10, 9), (8, os.getpid()), (4, os.O_ASYNC)):  # F_SETSIG, F_SETOWN, F_SETFL
            try:
                fcntl.fcntl(reading, command, argument)
            except OSError as error:
                print("refused", error)
        os.write(writing, b"x")
    """,
    "limit_by_call": call("prlimit64", "0", "0", "ctypes.create_string_buffer(16)", "0"),
    "limit_by_high_address": call("prlimit64", "0", "0", "ctypes.c_void_p(1 << 32)", "0"),
    "limit_of_the_supervisor": call("prlimit64", "@PID@", "9", "ctypes.create_string_buffer(16)", "0"),
    "limit_of_the_zygote": call("prlimit64", "os.getppid() or 1 << 20", "0", "ctypes.create_string_buffer(16)", "0"),
    "timers_of_every_kind": """
        import signal, time
        for number in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)
        for kind in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(kind, 0.001, 0.001)
        while True: pass
    """,
    "every_signal_to_oneself": """
        import signal
        for number in (*range(1, 32), *range(34, 65)):
            if number not in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
                try:
                    signal.raise_signal(number)
                except (OSError, KeyboardInterrupt):
                    pass
        print("alive")
    """,
    "restartable_sequence": call("rseq", "ctypes.c_long(-1)", "32", "0", "0"),
    "return_probe": call("uretprobe"),
    "answer_for_the_kernel": """
        import fcntl
        for number in range(64):
            for request in (0xC0502100, 0xC0182101):
                try:
                    fcntl.ioctl(number, request, bytearray(80))
                    print("ESCAPED", number)
                except OSError:
                    pass
    """,
    "close_everything": "import os; os.closerange(0, 1024); os._exit(0)",
    "cover_everything": """
        import os
        for number in range(3, 64):
            os.dup2(1, number)
        for number in range(64, 1024):
            try:
                os.dup2(1, number)
            except OSError:
                pass
        print("42")
    """,
    "abort": "import os; os.abort()",
    "kill_everybody": "import os; os.kill(-1, 9)",
    "kill_the_zygote": "import os; os.kill(os.getppid(), 9)",
    "kill_the_supervisor": "import os; os.kill(@PID@, 9)",
    "kill_by_call": call("kill", "@PID@", "9"),
    "handle_of_supervisor": call("pidfd_open", "@PID@", "0"),
    "signal_group": "import os; os.killpg(0, 9)",
    "lower_cpu_limit": refused(
        "import resource, signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (0, 0))"
    ),
    "lower_every_limit": """
        import resource, signal
        for number in range(1, 32):
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
        for kind in range(16):
            if kind != resource.RLIMIT_STACK:
                try:
                    resource.prlimit(0, kind, (0, 0))
                    print("ESCAPED", kind)
                except OSError:
                    print("refused", kind)
        while True:
            pass
    """,
    "lower_cpu_limit_by_call": call("prlimit64", "0", "0", "ctypes.create_string_buffer(16)", "None"),
    "lower_stack_and_overflow": """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_STACK, (4096, 4096))
        sys.setrecursionlimit(10**9)
        def deeper(): return sorted([0], key=lambda _: deeper())
        deeper()
    """,
    "real_time_timer": call("timer_create", "0", "ctypes.create_string_buffer(64)", "ctypes.create_string_buffer(8)"),
    # As the first process of its namespace it survives the signal.
    "unhandled_signal": "import signal, time; signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(0.3)",
}

_ORPHANS = {
    "fork": refused("import os; os.fork()"),
    "double_fork": """
        import os, time
        try:
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    while True: time.sleep(1)
                os._exit(0)
            print("ESCAPED")
        except OSError:
            print("refused")
    """,
    "raw_fork": call("fork"),
    "raw_vfork": call("vfork"),
    "clone_process": call("clone", "17", "0", "0", "0", "0"),
    "clone_into_namespace": call("clone", "0x10000000 | 0x10d00", "0", "0", "0", "0"),
    "clone_by_new_call": call("clone3", "ctypes.create_string_buffer(88)", "88"),
    "spawn": refused("import os; os.posix_spawn('/bin/sh', ['sh', '-c', 'sleep 60'], {})"),
    "subprocess": refused("import subprocess; subprocess.Popen(['sleep', '60'])"),
    "system": "import os; print('refused' if os.system('sleep 60') != 0 else 'ESCAPED')",
    "multiprocessing": refused("import multiprocessing as m; m.get_context('fork').Process(target=print).start()"),
    "execute": refused("import os, sys; os.execv('/bin/sh', ['sh', '-c', 'echo ESCAPED'])"),
    "execute_oneself": refused("import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])"),
    "pseudo_terminal": refused("import pty; pty.fork()"),
    "own_session": refused("import os; os.setsid()"),
    "outlive_parent": call("prctl", "1", "0", "0", "0", "0"),
    "adopt_orphans": call("prctl", "36", "1", "0", "0", "0"),
    "daemon_thread": "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
}

ATTACKS = [
    *attacks("forgery", _FORGERY, DONE),
    *attacks("forgery", _FEIGNED_FAULTS, STOPPED),
    *attacks("orphaning", _ORPHANS, EXITED),
    *attacks("orphaning", {"execute_memory": call("execveat", "1", "b''", "0", "0", "0x1000")}, KILLED, "system_call"),
]

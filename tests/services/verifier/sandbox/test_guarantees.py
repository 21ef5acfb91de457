"""What callers rely on: results, limits, isolation between runs, infrastructure faults, failing closed."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
from collections.abc import Iterator
from dataclasses import replace

import pytest

from services.contracts.errors import TurnoutError, UnavailableError
from services.runtime.process import LoopThread
from services.verifier.sandbox import layers as layers_module
from services.verifier.sandbox.frames import Ended, Reply
from services.verifier.sandbox.results import classify
from services.verifier.sandbox.sandbox import Layers, Program, Result, Sandbox, probe
from tests.services.verifier.sandbox.conftest import start
from tests.services.verifier.sandbox.containment import living


@pytest.fixture(scope="module")
def sandbox(loop: LoopThread) -> Iterator[Sandbox]:
    started = start(loop, num_zygotes=1)
    yield started
    loop.call(started.close())


@pytest.fixture
def run(sandbox: Sandbox, loop: LoopThread):  # type: ignore[no-untyped-def]
    def run(source: str, **options: object) -> Result:
        return loop.call(sandbox.run(Program(textwrap.dedent(source), **options)))  # type: ignore[arg-type]

    return run


def test_output_input_and_exit_code(run) -> None:  # type: ignore[no-untyped-def]
    result = run("import sys; print(sum(map(int, sys.stdin))); sys.exit('bye')", stdin=b"1\n2\n")
    assert (result.status, result.exit_code) == ("exited", 1)
    assert (result.stdout, result.stderr) == (b"3\n", b"bye\n")
    assert result.violations == []


def test_megabytes_of_input(run) -> None:  # type: ignore[no-untyped-def]
    result = run("import sys; print(len(sys.stdin.read()))", stdin=b"x" * (20 << 20))
    assert result.stdout == b"%d\n" % (20 << 20)


def test_a_program_behaves_like_a_script(run) -> None:  # type: ignore[no-untyped-def]
    source = """
        import atexit, sys, threading
        atexit.register(print, "bye")
        class A: pass
        def f(): return g()
        def g(): return A.__module__
        threading.Thread(target=lambda: print(f(), __name__)).start()
        exit(7)
    """
    result = run(source)
    assert sorted(result.stdout.split(b"\n")) == [b"", b"__main__ __main__", b"bye"]
    assert result.exit_code == 7


def test_a_traceback_shows_only_the_program(run) -> None:  # type: ignore[no-untyped-def]
    result = run("def f(x):\n    return 1 / x\n\nf(0)\n")
    assert result.exit_code == 1
    assert b'File "/tmp/program.py", line 2, in f\n    return 1 / x' in result.stderr
    assert b"services" not in result.stderr


def test_scratch_folder_is_writable_and_new(run) -> None:  # type: ignore[no-untyped-def]
    source = "import os, tempfile\nprint(os.listdir())\nopen('x', 'w').write('1')\ntempfile.TemporaryFile()\nprint(1)"
    for _ in range(2):
        assert run(source).stdout == b"['program.py']\n1\n"


def test_runs_do_not_share_state(run) -> None:  # type: ignore[no-untyped-def]
    run("import builtins, json; builtins.leak = 1; json.leak = 1; json.dumps = None")
    assert run("import json; print('leak' in dir(json), 'leak' in dir(__builtins__), json.dumps(1))").stdout == (
        b"False False 1\n"
    )


def test_random_is_seeded_for_each_run_and_hashes_are_fixed(run) -> None:  # type: ignore[no-untyped-def]
    outputs = [run("import random, os; print(random.random()); print(hash('a'))").stdout.split() for _ in range(3)]
    assert len({random for random, _ in outputs}) == 3
    assert len({hashed for _, hashed in outputs}) == 1


def test_memory_is_what_was_granted(run) -> None:  # type: ignore[no-untyped-def]
    source = "x = bytearray(100 << 20)\nprint(len(x))"
    assert run(source, memory_bytes=128 << 20).status == "exited"
    refused = run(source, memory_bytes=64 << 20)
    assert (refused.status, refused.violations) == ("memory", ["memory"])


def test_sleep_and_work_are_distinguished(run) -> None:  # type: ignore[no-untyped-def]
    slept = run("import time; time.sleep(60)", wall_seconds=0.4, cpu_seconds=0.3)
    assert (slept.status, slept.violations) == ("timeout_wall", ["wall_time"])
    assert slept.cpu_seconds < 0.2 < slept.wall_seconds
    worked = run("while True: pass", wall_seconds=60, cpu_seconds=0.3)
    assert (worked.status, worked.violations) == ("timeout_cpu", ["cpu_time"])
    assert worked.cpu_seconds >= 0.3


def test_waiting_for_a_core_does_not_count(loop: LoopThread) -> None:
    """Four programs share one core, so each waits for it three times as long as it works."""
    allowed = os.sched_getaffinity(0)

    async def on_one_core() -> list[Result]:
        os.sched_setaffinity(0, {min(allowed)})
        sandbox = Sandbox(4)
        try:
            await sandbox.start()
            busy = Program("import time\nwhile time.process_time() < 0.4: pass", wall_seconds=0.6, cpu_seconds=5)
            asleep = Program("import time; time.sleep(60)", wall_seconds=0.6, cpu_seconds=5)
            return await asyncio.gather(*(sandbox.run(program) for program in (busy, busy, busy, busy, asleep)))
        finally:
            os.sched_setaffinity(0, allowed)
            await sandbox.close()

    *busy, asleep = loop.call(on_one_core())
    assert [found.status for found in busy] == ["exited"] * 4
    assert max(found.wall_seconds for found in busy) > 0.6 < max(found.queued_seconds for found in busy)
    assert asleep.status == "timeout_wall"


def test_a_kill_that_the_host_did_not_cause_counts_against_the_program() -> None:
    reply = Reply(Ended.BY_ITSELF, signal.SIGKILL, 0.1, 0.1, 0.0, 1 << 20)
    assert classify(Program("x"), reply, b"", b"", host_killed=False).status == "killed"
    assert classify(Program("x"), reply, b"", b"", host_killed=True).status == "infrastructure_fault"


def test_output_limit_keeps_the_beginning(run) -> None:  # type: ignore[no-untyped-def]
    result = run("while True: print('0123456789')", output_bytes=1000)
    assert (result.status, result.violations) == ("output_limit", ["output"])
    assert result.stdout == (b"0123456789\n" * 100)[:1000]


def test_crash_and_forbidden_call_are_killed(run) -> None:  # type: ignore[no-untyped-def]
    crashed = run("import ctypes; ctypes.string_at(0)")
    assert (crashed.status, crashed.exit_code, crashed.violations) == ("killed", -signal.SIGSEGV, [])
    forbidden = run("import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)")
    assert (forbidden.status, forbidden.exit_code) == ("killed", -signal.SIGSYS)
    assert forbidden.violations == ["system_call"]


async def started(others: set[int]) -> set[int]:
    """The process of a program, once there is one in addition to `others`."""
    while not (program := set(living(os.getpid())) - others):
        await asyncio.sleep(0.01)
    return program


def test_a_dead_zygote_is_a_fault_and_is_replaced(loop: LoopThread) -> None:
    others = living(os.getpid())
    sandbox = start(loop, num_zygotes=1)
    zygote = set(living(os.getpid())) - set(others)

    async def kill_while_running() -> tuple[Result, Result]:
        task = asyncio.create_task(sandbox.run(Program("while True: pass", wall_seconds=60, cpu_seconds=60)))
        program = await started(set(others) | zygote)
        os.kill(min(zygote), signal.SIGKILL)
        fault = await task
        while (program | zygote) & set(living(os.getpid())):  # the test's time limit ends this if it must
            await asyncio.sleep(0.01)
        return fault, await sandbox.run(Program("print(1)"))

    try:
        fault, after = loop.call(kill_while_running())
    finally:
        loop.call(sandbox.close())
    assert (fault.status, fault.exit_code, fault.violations) == ("infrastructure_fault", None, [])
    assert "zygote" in fault.fault
    assert after.stdout == b"1\n"


def test_a_kill_from_outside_is_not_a_fault_unless_the_kernel_recorded_one(loop: LoopThread) -> None:
    others = living(os.getpid())
    sandbox = start(loop, num_zygotes=1)
    zygote = set(living(os.getpid())) - set(others)

    async def kill() -> Result:
        task = asyncio.create_task(sandbox.run(Program("while True: pass", wall_seconds=60, cpu_seconds=60)))
        os.kill(max(await started(set(others) | zygote)), signal.SIGKILL)
        return await task

    try:
        result = loop.call(kill())
    finally:
        loop.call(sandbox.close())
    assert (result.status, result.exit_code, result.fault) == ("killed", -signal.SIGKILL, "")


def test_cancelled_run_is_stopped(loop: LoopThread) -> None:
    sandbox = start(loop, num_zygotes=1)

    async def cancel() -> Result:
        running = asyncio.create_task(sandbox.run(Program("while True: pass", wall_seconds=60, cpu_seconds=60)))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return await sandbox.run(Program("print(1)"))

    try:
        assert loop.call(cancel()).stdout == b"1\n"
    finally:
        loop.call(sandbox.close())


def test_zygotes_are_replaced_and_many_callers_wait(loop: LoopThread) -> None:
    others = living(os.getpid())
    sandbox = start(loop, num_zygotes=2, runs_per_zygote=5)

    async def many() -> list[Result]:
        return await asyncio.gather(*(sandbox.run(Program(f"print({number})")) for number in range(30)))

    first = set(living(os.getpid())) - set(others)
    try:
        results = loop.call(many())
        assert not first & set(living(os.getpid())), "zygotes were not replaced"
    finally:
        loop.call(sandbox.close())
    assert [result.stdout for result in results] == [b"%d\n" % number for number in range(30)]


def test_close_ends_runs_and_those_that_wait(loop: LoopThread) -> None:
    others = living(os.getpid())
    sandbox = start(loop, num_zygotes=1)

    zygote = set(living(os.getpid())) - set(others)

    async def close_in_the_middle() -> list[Result | BaseException]:
        endless = Program("while True: pass", wall_seconds=60, cpu_seconds=60)
        tasks = [asyncio.create_task(sandbox.run(endless)) for _ in range(3)]
        await started(set(others) | zygote)
        await sandbox.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    running, *waiting = loop.call(close_in_the_middle())
    assert isinstance(running, Result)
    assert running.status == "infrastructure_fault"
    assert [type(error) for error in waiting] == [UnavailableError, UnavailableError]
    while set(living(os.getpid())) - set(others):  # the test's time limit ends this if it must
        pass


def test_the_zygote_contains_none_of_our_modules(run) -> None:  # type: ignore[no-untyped-def]
    source = "import sys; print([name for name in sys.modules if name.startswith('services')], sys.argv, sys.orig_argv)"
    assert run(source).stdout == b"[] ['/tmp/program.py'] ['/tmp/program.py']\n"


def test_opened_package_can_be_imported(loop: LoopThread) -> None:
    import redis  # any installed package of pure Python

    sandbox = Sandbox(1, packages=[os.path.dirname(redis.__file__)])
    loop.call(sandbox.start())
    try:
        found = loop.call(sandbox.run(Program("import redis.exceptions as e; print(e.RedisError.__name__)")))
        assert found.stdout == b"RedisError\n", found
        other = loop.call(sandbox.run(Program("import pydantic")))
        assert b"ModuleNotFoundError" in other.stderr
    finally:
        loop.call(sandbox.close())


def test_probe_names_what_is_active() -> None:
    found = probe()
    assert {"rlimits", "no_new_privs", "seccomp"} <= set(found.active)
    assert found.missing == {}
    assert (found.advice == "") == found.isolated


@pytest.mark.parametrize("layer", ["rlimits", "no_new_privs", "seccomp", "landlock_abi"])
def test_missing_layer_fails_closed(layer: str, loop: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    poor = replace(probe(), **{layer: 0})  # type: ignore[arg-type]
    monkeypatch.setattr("services.verifier.sandbox.sandbox.probe", lambda python: poor)
    sandbox = Sandbox(1)
    with pytest.raises(UnavailableError) as caught:
        loop.call(sandbox.start())
    assert caught.value.remedy
    with pytest.raises(TurnoutError):
        loop.call(sandbox.run(Program("print(1)")))


def test_old_landlock_needs_namespaces() -> None:
    rich = Layers(rlimits=True, no_new_privs=True, landlock_abi=1, seccomp=True, private_root=True)
    assert rich.missing == {}
    assert "Linux 6.2" in replace(rich, private_root=False).missing["landlock"]
    assert "turnout.json" in replace(rich, private_root=False, landlock_abi=7).advice


def test_probe_of_a_broken_interpreter_says_so(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TurnoutError, match="could not probe"):
        layers_module.probe(str(tmp_path / "no-python"))

"""Code: the program in the reply must give the expected outputs, when run case by case in the sandbox.

`tests` (in the style of LiveCodeBench):

    {"cases": [{"stdin": "1 2\\n", "stdout": "3\\n", "hidden": true}, ...], "wall_seconds": 2, "memory_mb": 256}
    {"cases": [{"call": "add", "args": [1, 2], "expected": 3}, ...], "tolerance": 1e-6}

The program is the last code block of the tagged answer, otherwise of the reply, otherwise the answer itself
(code_blocks.py). Only the program, its input and our driver enter the sandbox; outputs are compared outside. A program
can therefore print anything, but passes only if it prints the right output. `wall_seconds` limits how long a case may
compute; time spent waiting for a core on a busy machine does not count.
"""

from __future__ import annotations

import asyncio
import builtins
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from services.contracts.errors import InfrastructureError
from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.contracts.questions.code_tests import Case, Tests, read_tests
from services.runtime.logs import get_logger
from services.runtime.settings import load
from services.verifier import metrics
from services.verifier.gate import Gate
from services.verifier.rewards.code_blocks import extract_program
from services.verifier.rewards.code_outputs import OTHER, SET, same_result, same_text
from services.verifier.rewards.registry import Opened, register_resource
from services.verifier.rewards.replies import no_answer, shorten
from services.verifier.sandbox.sandbox import Program, Result, Sandbox
from services.verifier.settings import VerifierSettings

log = get_logger(__name__)

_OUTPUT_BYTES: Final = 4 << 20
_SPARE_SECONDS: Final = 2.0
"""Wall time beyond `wall_seconds` for work that is not computing, mainly reading modules from disk."""
_GIVEN_MODULES: Final = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
_GIVEN_NAMES: Final = "\n".join(
    [*(f"from {name} import *" for name in _GIVEN_MODULES), f"import {', '.join(_GIVEN_MODULES)}"]
)
"""What LiveCodeBench's grader prepends to answers in LeetCode's form. Here they are built-in names, so that none of
them is mistaken for the function that the reply must define."""
_DRIVER: Final = f"""
import builtins, json, linecache, os, sys, types

def plain(value):
    return {{{SET!r}: list(value)}} if isinstance(value, (set, frozenset)) else {{{OTHER!r}: repr(value)}}

def main(task):
    out, leave = os.fdopen(os.dup(1), "w"), os._exit
    os.dup2(2, 1)
    reply = sys.modules["reply"] = types.ModuleType("reply")
    given = {{}}
    exec({_GIVEN_NAMES!r}, given)
    reply.__builtins__ = given | vars(builtins)
    sys.setrecursionlimit(50000)
    linecache.cache["reply.py"] = (0, None, task["source"].splitlines(True), "reply.py")
    exec(compile(task["source"], "reply.py", "exec"), reply.__dict__)
    name = task["call"].rpartition(".")[2]
    function = getattr(reply, name) if hasattr(reply, name) else getattr(reply.Solution(), name)
    out.write(json.dumps(function(*task["args"]), default=plain))
    out.close()
    leave(0)  # what the reply has yet to print, or threads that it left behind, do not change the result

"""
"""Calls the function and writes its result as JSON. The reply's own output goes to standard error."""


class Runner(Protocol):
    """The part of the sandbox that this reward uses."""

    async def run(self, program: Program) -> Result: ...


@register_resource("code")
@asynccontextmanager
async def open_code() -> AsyncIterator[Opened]:
    """Open a sandbox for as many concurrent programs as the settings say.

    Raises:
        UnavailableError: the sandbox cannot start on this machine.
    """
    num_programs = load(VerifierSettings).programs
    sandbox = Sandbox(num_programs)
    await sandbox.start()
    try:
        layers = sandbox.layers
        for layer in layers.active:
            metrics.LAYER.labels(layer).set(1)
        log.info("sandbox started", layers=layers.active, advice=layers.advice)
        yield Opened(CodeReward(sandbox, num_programs), {"sandbox": ", ".join(layers.active)})
    finally:
        await sandbox.close()


class CodeReward:
    """Judges programs, at most `size` at once."""

    def __init__(self, sandbox: Runner, size: int) -> None:
        self.sandbox = sandbox
        self._gate = Gate(size)

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement:
        """Reward 1 if every case passes, else 0, or with `partial_credit` the share of cases passed.

        Raises:
            QuestionError: the question's tests are invalid.
            InfrastructureError: the sandbox failed or the machine was too busy, also in a second run if there was one.
        """
        tests = read_tests(question)
        # Parsing the Markdown of a long reply can take seconds, for which other tasks must not wait.
        source = await asyncio.to_thread(extract_program, response_text)
        if source is None:
            return Judgement(reward=0.0, correct=False, feedback=no_program(truncated))
        num_passed, feedback = 0, ""
        for number, case in enumerate(tests.cases, start=1):
            wrong = explain(case, number, await self._run(program(source, case, tests)), tests.tolerance)
            num_passed += not wrong
            feedback = feedback or wrong
            if wrong and not tests.partial_credit:
                break
        correct = num_passed == len(tests.cases)
        return Judgement(
            reward=num_passed / len(tests.cases) if tests.partial_credit else float(correct),
            correct=correct,
            parsed_answer=shorten(source, 1000),
            format_ok=True,
            feedback=feedback,
        )

    async def _run(self, wanted: Program) -> Result:
        """Run a program. After a fault, or if the machine was too busy, run it again alone, once per group."""
        async with self._gate.beside_others():
            result = await self.sandbox.run(wanted)
        if result.status in ("infrastructure_fault", "starved") and self._gate.may_try_again():
            async with self._gate.alone():
                result = await self.sandbox.run(wanted)
        for reason in result.violations:
            metrics.VIOLATIONS.labels(reason).inc()
        if result.status == "infrastructure_fault":
            raise InfrastructureError(f"The sandbox failed: {result.fault}")
        if result.status == "starved":
            raise InfrastructureError(
                f"The machine was too busy for a program, which waited for a core for {result.queued_seconds:.0f} s of "
                f"{result.wall_seconds:.0f} s.",
                remedy="Give the verifier more cores, or lower TURNOUT_VERIFIER_PROGRAMS.",
            )
        return result


def no_program(truncated: bool) -> str:
    return no_answer(True) if truncated else "No program was found: put it into a ```python block."


def program(source: str, case: Case, tests: Tests) -> Program:
    """The sandboxed program for one case. Contains nothing of the expected output."""
    limits: dict[str, Any] = {
        "cpu_seconds": tests.wall_seconds,
        "wall_seconds": tests.wall_seconds + _SPARE_SECONDS,
        "memory_bytes": tests.memory_mb << 20,
        "output_bytes": _OUTPUT_BYTES,
    }
    if case.call is None:
        return Program(source, stdin=case.stdin.encode(), **limits)
    arguments = ", ".join(bytes(argument).decode() for argument in case.args)
    task = f'{{"source": {json.dumps(source)}, "call": {json.dumps(case.call)}, "args": [{arguments}]}}'
    return Program(f"{_DRIVER}main(json.loads({task!r}))\n", stdin=case.stdin.encode(), **limits)


def explain(case: Case, number: int, result: Result, tolerance: float | None = None) -> str:
    """Why a run fails its case, in one sentence; empty if it passes. Does not reveal hidden cases."""
    which = f"Hidden test {number}" if case.hidden else f"Test {number}"
    if result.status in ("timeout_cpu", "timeout_wall"):
        return f"{which}: the program is too slow."
    if result.status == "memory":
        return f"{which}: the program needs too much memory."
    if result.status == "output_limit":
        return f"{which}: the program prints too much."
    if result.status != "exited":
        return f"{which}: the program crashed or tried something forbidden."
    if result.exit_code != 0:
        return f"{which}: the program failed with {_error(result.stderr, case.hidden)}."
    output = result.stdout.decode("utf-8", "replace")
    if same_output(case, output, tolerance):
        return ""
    if case.hidden:
        return f"{which}: the output is wrong."
    if case.call is not None:
        arguments = ", ".join(bytes(argument).decode() for argument in case.args)
        call = shorten(f"{case.call}({arguments})")
        given = output.replace(json.dumps(SET), '"set"').replace(json.dumps(OTHER), '"other"')
        return f"{which}: {call} gave {shorten(given)}, expected {shorten(bytes(case.expected).decode())}."
    given, wanted = shorten(output.strip()), shorten((case.stdout or "").strip())
    return f"{which}: for input {shorten(case.stdin.strip())!r} the output was {given!r}, expected {wanted!r}."


def same_output(case: Case, output: str, tolerance: float | None = None) -> bool:
    """Whether the output is what the case expects."""
    if case.call is not None:
        return same_result(output, bytes(case.expected).decode(), tolerance)
    return same_text(output, case.stdout or "", tolerance)


def _error(stderr: bytes, hidden: bool) -> str:
    """The last line of the error output; of a hidden case only a built-in exception's name, as more could reveal it."""
    last = stderr.decode("utf-8", "replace").rstrip().rpartition("\n")[2].strip()
    if not hidden:
        return shorten(last) or "an exit code other than 0"
    name = last.partition(":")[0]
    known = getattr(builtins, name, None)
    return name if isinstance(known, type) and issubclass(known, BaseException) else "an error"

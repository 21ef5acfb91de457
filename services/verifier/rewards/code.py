"""Code: the program in the reply must give the expected outputs, run case by case in the sandbox.

`tests` (in the style of LiveCodeBench):

    {"cases": [{"stdin": "1 2\\n", "stdout": "3\\n", "hidden": true}, ...], "wall_seconds": 2, "memory_mb": 256}
    {"cases": [{"call": "add", "args": [1, 2], "expected": 3}, ...]}

The program is the last fenced code block, or the tagged answer. Only it, its input and a driver of ours go into the
sandbox; outputs are compared out here. So a program can print whatever it likes: to pass it has to print the right
thing. `wall_seconds` is how long a case may compute; the clock's limit is wider, since our machine may be busy.
"""

from __future__ import annotations

import builtins
import json
import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Protocol

from services.contracts.code_tests import Case, Tests, read_tests
from services.contracts.errors import InfrastructureError
from services.contracts.messages import Question
from services.verifier import metrics
from services.verifier.gate import Gate
from services.verifier.rewards.registry import Judgement
from services.verifier.rewards.replies import no_answer, shorten, tagged_answer
from services.verifier.sandbox.api import Program, Result

_FENCE: Final = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_OUTPUT_BYTES: Final = 4 << 20
_DRIVER: Final = """
import json, os, sys, types

def plain(value):
    return sorted(value, key=repr) if isinstance(value, (set, frozenset)) else repr(value)

def main(task):
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    reply = sys.modules["reply"] = types.ModuleType("reply")
    exec(compile(task["source"], "reply.py", "exec"), reply.__dict__)
    name = task["call"].rpartition(".")[2]
    function = getattr(reply, name) if hasattr(reply, name) else getattr(reply.Solution(), name)
    out.write(json.dumps(function(*task["args"]), default=plain))
    out.close()

main(json.loads(%s))
"""
"""Calls the function and writes its result as JSON; what the reply prints goes to standard error."""


class Runner(Protocol):
    """The sandbox, as far as this reward needs it."""

    async def run(self, program: Program) -> Result: ...


class CodeReward:
    """Judges programs, at most `size` at once."""

    def __init__(self, sandbox: Runner, size: int) -> None:
        self.sandbox = sandbox
        self._gate = Gate(size)

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement:
        """Reward 1 where every case passes, else 0, or the share of cases passed with `partial_credit`.

        Raises:
            QuestionError: the question's tests make no sense.
            InfrastructureError: the sandbox failed twice.
        """
        tests = read_tests(question)
        source = extract_program(response_text)
        if source is None:
            return Judgement(reward=0.0, correct=False, feedback=no_program(truncated))
        num_passed, feedback = 0, ""
        for number, case in enumerate(tests.cases, start=1):
            wrong = explain(case, number, await self._run(program(source, case, tests)))
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
        """One run; a fault, or a stop by the clock with little CPU time used, is tried again with no other beside."""
        async with self._gate.beside_others():
            result = await self.sandbox.run(wanted)
        starved = result.status == "timeout_wall" and result.cpu_seconds < wanted.cpu_seconds / 2
        if starved or result.status == "infrastructure_fault":
            async with self._gate.alone():
                result = await self.sandbox.run(wanted)
        for reason in result.violations:
            metrics.VIOLATIONS.labels(reason).inc()
        if result.status == "infrastructure_fault":
            raise InfrastructureError(f"The sandbox failed: {result.fault}")
        return result


def extract_program(text: str) -> str | None:
    """The last fenced block, else the tagged answer; None where there is neither."""
    blocks = _FENCE.findall(text)
    return str(blocks[-1]) if blocks else tagged_answer(text) or None


def no_program(truncated: bool) -> str:
    return no_answer(True) if truncated else "No program was found: put it into a ```python block."


def program(source: str, case: Case, tests: Tests) -> Program:
    """What goes into the sandbox for one case. Holds nothing of what is expected."""
    limits: dict[str, Any] = {
        "cpu_seconds": tests.wall_seconds,
        "wall_seconds": 3 * tests.wall_seconds + 5,
        "memory_bytes": tests.memory_mb << 20,
        "output_bytes": _OUTPUT_BYTES,
    }
    if case.call is None:
        return Program(source, stdin=case.stdin.encode(), **limits)
    task = json.dumps({"source": source, "call": case.call, "args": case.args})
    return Program(_DRIVER % repr(task), stdin=case.stdin.encode(), **limits)


def explain(case: Case, number: int, result: Result) -> str:
    """Why a run does not pass its case, in one sentence; empty where it passes. Keeps hidden cases hidden."""
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
    if same_output(case, output):
        return ""
    if case.hidden:
        return f"{which}: the output is wrong."
    if case.call is not None:
        arguments = ", ".join(json.dumps(argument) for argument in case.args)
        call = shorten(f"{case.call}({arguments})")
        return f"{which}: {call} gave {shorten(output)}, expected {shorten(json.dumps(case.expected))}."
    given, wanted = shorten(output.strip()), shorten((case.stdout or "").strip())
    return f"{which}: for input {shorten(case.stdin.strip())!r} the output was {given!r}, expected {wanted!r}."


def same_output(case: Case, output: str) -> bool:
    """Whether the output is what the case expects.

    Text: equal line by line, white space at the ends aside, or equal as numbers word by word. Results of calls: equal
    as JSON, floating-point numbers within 1e-9.
    """
    if case.call is not None:
        try:
            return _close(json.loads(output), case.expected)
        except (ValueError, RecursionError, OverflowError):  # the last: a whole number that no float can hold
            return False
    given, wanted = ([line.strip() for line in text.strip().split("\n")] for text in (output, case.stdout or ""))
    if len(given) != len(wanted):
        return False
    return all(left == right or _same_numbers(left, right) for left, right in zip(given, wanted, strict=True))


def _same_numbers(left: str, right: str) -> bool:
    try:
        return [Decimal(word) for word in left.split()] == [Decimal(word) for word in right.split()]
    except InvalidOperation:
        return False


def _close(given: Any, wanted: Any) -> bool:
    if isinstance(given, bool) or isinstance(wanted, bool):
        return given is wanted
    if isinstance(given, float) or isinstance(wanted, float):
        numbers = isinstance(given, int | float) and isinstance(wanted, int | float)
        return numbers and (given == wanted or math.isclose(given, wanted, rel_tol=1e-9, abs_tol=1e-12))
    if isinstance(given, list) and isinstance(wanted, list):
        return len(given) == len(wanted) and all(_close(a, b) for a, b in zip(given, wanted, strict=True))
    if isinstance(given, dict) and isinstance(wanted, dict):
        return given.keys() == wanted.keys() and all(_close(given[key], wanted[key]) for key in wanted)
    return bool(given == wanted)


def _error(stderr: bytes, hidden: bool) -> str:
    """The program's last words. Of a hidden case only a built-in exception's name: the rest could hold its input."""
    last = stderr.decode("utf-8", "replace").rstrip().rpartition("\n")[2].strip()
    if not hidden:
        return shorten(last) or "an exit code other than 0"
    name = last.partition(":")[0]
    known = getattr(builtins, name, None)
    return name if isinstance(known, type) and issubclass(known, BaseException) else "an error"

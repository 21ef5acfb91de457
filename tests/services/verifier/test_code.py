"""Programs are judged by their outputs, in the real sandbox."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.errors import InfrastructureError
from services.contracts.judgement import Judgement
from services.contracts.questions.code_tests import Case
from services.verifier.gate import one_second_try
from services.verifier.rewards import code
from services.verifier.rewards.code import CodeReward
from services.verifier.rewards.code_blocks import extract_program
from services.verifier.rewards.code_outputs import OTHER, SET
from services.verifier.sandbox.sandbox import Program, Result, Sandbox
from tests.services.verifier.builders import question

SUMS = {
    "cases": [
        {"stdin": "1 2\n", "stdout": "3\n"},
        {"stdin": "40 2\n", "stdout": "42", "hidden": True},
        {"stdin": "987654321 1\n", "stdout": "987654322\n", "hidden": True},
    ],
    "wall_seconds": 2,
}
CALLS = {
    "cases": [
        {"call": "add", "args": [1, 2], "expected": 3},
        {"call": "add", "args": [[1], [2]], "expected": [1, 2], "hidden": True},
        {"call": "add", "args": [0.1, 0.2], "expected": 0.3},
    ]
}


FORGER = """
import os
for descriptor in range(1, 20):
    try:
        os.write(descriptor, b"3")
    except OSError:
        pass
os._exit(0)
"""


def fenced(source: str) -> str:
    return f"First I think.\n```python\nprint('a draft')\n```\nSo:\n```python\n{source}\n```\nDone."


async def judge(sandbox: Sandbox, tests: object, source: str) -> Judgement:
    return await CodeReward(sandbox, 2).judge(question("code", "", tests), fenced(source), False)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("source", "feedback"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", ""),
        ("a, b = map(int, input().split())\nprint(float(a + b), '')", ""),
        ("print(3)", "Hidden test 2: the output is wrong."),
        ("print(4)", "Test 1: for input '1 2' the output was '4', expected '3'."),
        (
            "a, b = map(int, input().split())\nprint(a + b if a < 40 else {}[a])",
            "Hidden test 2: the program failed with KeyError.",
        ),
        ("x = 1 +", "Test 1: the program failed with SyntaxError: invalid syntax."),
        ("while True: pass", "Test 1: the program is too slow."),
        ("x = [0] * 10**9", "Test 1: the program needs too much memory."),
        ("while True: print('x' * 10**6)", "Test 1: the program prints too much."),
        ("import os; os.kill(os.getpid(), 11)", "Test 1: the program"),
        ("import sys; print(3); sys.exit(1)", "Test 1: the program failed with an exit code other than 0."),
    ],
)
async def test_standard_input_and_output(sandbox: Sandbox, source: str, feedback: str) -> None:
    found = await judge(sandbox, SUMS, source)
    assert (found.correct, found.reward) == (not feedback, float(not feedback)), found.feedback
    assert found.feedback.startswith(feedback)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("source", "feedback"),
    [
        ("def add(a, b):\n    print('noise')\n    return a + b", ""),
        ("class Solution:\n    def add(self, a, b): return a + b", ""),
        ("def add(a, b): return (a + b) if a != [1] else (1, 2)", ""),
        ("def add(a, b): return 4", "Test 1: add(1, 2) gave 4, expected 3."),
        ("def add(a, b): return 3", "Hidden test 2: the output is wrong."),
        ("def plus(a, b): return 3", "Test 1: the program failed with AttributeError"),
        (FORGER, "Hidden test 2: the output is wrong."),
        ("def add(a, b): raise ValueError(str(a))", "Test 1: the program failed with ValueError: 1."),
    ],
)
async def test_calls(sandbox: Sandbox, source: str, feedback: str) -> None:
    found = await judge(sandbox, CALLS, source)
    assert found.correct == (not feedback), found.feedback
    assert found.feedback.startswith(feedback)


@pytest.mark.asyncio(loop_scope="module")
async def test_partial_credit_is_the_share_of_cases(sandbox: Sandbox) -> None:
    found = await judge(sandbox, {**SUMS, "partial_credit": True}, "print(42)")
    assert (found.correct, found.reward) == (False, pytest.approx(1 / 3))
    assert found.feedback.startswith("Test 1: for input")


@pytest.mark.asyncio(loop_scope="module")
async def test_feedback_does_not_leak_hidden_tests(sandbox: Sandbox) -> None:
    source = "s = input()\nif s != '1 2': raise type(s.replace(' ', '_'), (Exception,), {})(s)\nprint(3)"
    found = await judge(sandbox, SUMS, source)
    assert found.feedback == "Hidden test 2: the program failed with an error."


class Recorder:
    """A sandbox that returns prepared results and records the programs that it got."""

    def __init__(self, *results: Result) -> None:
        self.results = list(results)
        self.programs: list[Program] = []

    async def run(self, program: Program) -> Result:
        self.programs.append(program)
        return self.results.pop(0) if len(self.results) > 1 else self.results[0]


def result(status: str, stdout: bytes = b"", cpu_seconds: float = 0.0) -> Result:
    return Result(status, 0 if status == "exited" else -9, stdout, b"", cpu_seconds, 1.0)  # type: ignore[arg-type]


async def test_expected_values_never_enter_the_sandbox() -> None:
    secret = "s3cr3t"
    for case in ({"stdin": "1", "stdout": secret}, {"call": "f", "args": [1], "expected": {"x": secret}}):
        recorder = Recorder(result("exited", b"no"))
        await CodeReward(recorder, 1).judge(question("code", secret, {"cases": [case]}), fenced("print(1)"), False)
        (program,) = recorder.programs
        assert secret not in program.source
        assert secret.encode() not in program.stdin


async def test_a_fault_is_tried_again_and_then_raised() -> None:
    one = {"cases": [{"stdin": "", "stdout": "3"}]}
    fault = result("infrastructure_fault")
    recovered = CodeReward(Recorder(fault, result("exited", b"3\n")), 2)
    assert (await recovered.judge(question("code", "", one), fenced("print(3)"), False)).correct
    with pytest.raises(InfrastructureError):
        await CodeReward(Recorder(fault), 2).judge(question("code", "", one), fenced("print(3)"), False)


async def test_a_program_starved_by_a_busy_machine_runs_again_alone() -> None:
    one = {"cases": [{"stdin": "", "stdout": "3"}], "wall_seconds": 2}
    starved = Recorder(result("starved"), result("exited", b"3\n"))
    assert (await CodeReward(starved, 2).judge(question("code", "", one), fenced("print(3)"), False)).correct
    with pytest.raises(InfrastructureError, match="too busy"):
        await CodeReward(Recorder(result("starved")), 2).judge(question("code", "", one), fenced("print(3)"), False)
    slept = Recorder(result("timeout_wall"))
    assert not (await CodeReward(slept, 2).judge(question("code", "", one), fenced("print(3)"), False)).correct
    assert len(slept.programs) == 1


@pytest.mark.parametrize("status", ["starved", "infrastructure_fault"])
async def test_a_group_gets_one_second_run(status: str) -> None:
    """Each second run makes all other tasks wait."""
    one = {"cases": [{"stdin": "", "stdout": "3"}]}
    starved = Recorder(result(status))
    reward = CodeReward(starved, 2)
    with one_second_try():
        replies = (reward.judge(question("code", "", one), fenced("print(3)"), False) for _ in range(4))
        found = await asyncio.gather(*replies, return_exceptions=True)
    assert [type(each) for each in found] == [InfrastructureError] * 4
    assert len(starved.programs) == 5


@pytest.mark.parametrize(
    "tests",
    [
        "",
        "{}",
        {"cases": [{"stdin": "1", "stdout": "1"}], "wal_seconds": 2},
        {"cases": [{"stdin": "1", "stdout": "1", "hidden_": True}]},
        {"cases": [{"stdin": "1", "stdout": "1"}], "tolerance": -1},
        {"cases": [{"stdin": "1", "stdout": "1"}], "wall_seconds": 1e6},
        {"cases": []},
        {"cases": [{"stdin": "1"}]},
        {"cases": [{"call": "f"}]},
        {"cases": [3]},
        "[" * 5000,
    ],
)
async def test_invalid_tests_are_a_fault(tests: object) -> None:
    with pytest.raises(InfrastructureError, match="code-1"):
        await CodeReward(Recorder(result("exited")), 1).judge(question("code", "", tests), fenced("x"), False)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (fenced("a\n"), "a\n\n"),
        ("<answer>print(1)</answer>", "print(1)"),
        ("```\nx\n```", "x\n"),
        ("```python\nnever closed", None),
        ("print(1)", None),
        ("```" * 10000 + "\n```" * 10000, None),
        ("1. So:\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y\n"),
        ("- a\n\n  - ```py\n    x\n    ```\n", "x\n"),
        ("> ```\n> x\n> ```", "x\n"),
        ("        ```python\n        x\n        ```", "x\n"),
        ("~~~python\nx = '```'\n~~~", "x = '```'\n"),
        ("````\n```\nx\n```\n````", "```\nx\n```\n"),
        ("<answer>\n```python\nx\n```\n</answer>\n```\ny\n```", "x\n"),
        ("<answer>```python\nx\n```</answer>", "x\n"),
        ("```python\nx\n```\n<answer>see above</answer>", "x\n"),
        ("```python\r\nx\r\ny\r\n```", "x\ny\n"),
        ("```python\nx\n```\n```python\nnever closed", "x\n"),
        ("> ```py\n> a\n>   b\n> ```", "a\n  b\n"),
        ("<answer>`print(1)`</answer>", "print(1)"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("```python\ncode\n```\nIt prints\n```text\n5\n```", "code\n"),
        ("```\ncode\n```\nRun it:\n```bash\npython x.py\n```", "code\n"),
        ("```c++\nint x;\n```", "int x;\n"),
        ("```python\ndraft, never closed\n\n```python\nfinal\n```", "final\n"),
        ("Here it is: ```python3\na\n``` Done.", "a\n"),
        ("1. ```python\n   a\n   ```", "a\n"),
        ("```python\na\n```\nUse ``` for code.", "a\n"),
        ("```python\r\na\r\n```\r\n", "a\n"),
        ('```python3 title="a"\na\n```', "a\n"),
        ("```{.python}\na\n```", "a\n"),
    ],
)
def test_the_program_is_the_last_closed_block(text: str, source: str | None) -> None:
    assert extract_program(text) == source


async def test_a_reply_without_program_earns_nothing() -> None:
    reward = CodeReward(Recorder(result("exited")), 1)
    found = await reward.judge(question("code", "", SUMS), "I do not know.", False)
    assert (found.reward, found.format_ok) == (0.0, False)
    assert "```python" in found.feedback


@given(
    st.lists(st.one_of(st.sampled_from(["```", "```python\n", "\n```\n", "<answer>", "</answer>"]), st.text())).map(
        "".join
    )
)
def test_no_text_makes_the_search_for_a_program_raise(text: str) -> None:
    extract_program(text)


def call_case(expected: object) -> Case:
    return Case(call="f", expected=msgspec.Raw(json.dumps(expected)))


def test_a_number_that_no_float_can_hold_is_a_wrong_answer() -> None:
    """Not an infrastructure fault, which would exclude the reply from its group."""
    assert not code.same_output(call_case(0.5), "1" + "0" * 400)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        st.lists,
        max_leaves=8,
    )
)
def test_a_result_equals_itself_and_nothing_else(value: object) -> None:
    """JSON has no infinity, so rows cannot expect one."""
    case = call_case(value)
    assert code.same_output(case, json.dumps(value))
    assert not code.same_output(case, json.dumps([value, "more"]))
    assert not code.same_output(case, "print")


@pytest.mark.parametrize(
    ("given_value", "wanted", "same"),
    [(True, 1, False), (1, 1.0, True), (0.1 + 0.2, 0.3, True), ({"a": [1]}, {"a": [1]}, True), ("1", 1, False)],
)
def test_results_of_calls_compare_as_json(given_value: object, wanted: object, same: bool) -> None:
    assert code.same_output(call_case(wanted), json.dumps(given_value)) == same


@pytest.mark.parametrize(
    ("printed", "wanted", "tolerance", "same"),
    [
        ("0.3333333333333333", "0.333333333333", None, True),
        ("0.333334", "0.333333", None, False),
        ("0.333334", "0.333333", 1e-5, True),
        ("a 2.50000000001 b", "a 2.5 b", None, True),
        ("1e-20", "2e-20", None, False),
        ("1e-20", "2e-20", 1e-9, True),
        ("9.11e-31", "1.67e-27", None, False),
        ("5.5e-17", "0.0", None, True),
        ("0", "1e-31", None, False),
        ("4.000000000001", "4", None, True),
        ("1000000001.0", "1000000000", None, False),
        ("1.2345678901234567e+19", "12345678901234567890", None, False),
        ("1e400", "1e500", None, False),
        ("inf", "inf", None, True),
        ("[0.30000000000000004, 1]", "[0.3, 1]", None, True),
        ("Case 1: 0.3333333333333333", "Case 1: 0.333333333333", None, True),
        ("Case 1: 0.5", "Case 2: 0.5", None, False),
        ("2024-01-05", "2024-1-5", None, False),
        ("1.5-2.5", "1.5-2.50", None, False),
        ("1  2", "1 2", None, True),
        ("*  *", "* *", None, False),
        ("1 2", "1\n2", None, False),
        ("1e20", "100000000000000000000", None, True),
        ("100000000000000000001", "100000000000000000000", None, False),
        ("9" * 5000, "9" * 5000, None, True),
        ("9" * 4999 + "8", "9" * 5000, 0.5, False),
        ("1_000", "1000", None, False),
        ("\N{FULLWIDTH DIGIT ONE}", "1", None, False),
        ("+3", "3", None, True),
        ("3.", "3", None, True),
        ("nan", "0", 0.5, False),
        ("1e999999999", "1", 0.5, False),
    ],
)
def test_printed_numbers(printed: str, wanted: str, tolerance: float | None, same: bool) -> None:
    assert code.same_output(Case(stdout=wanted), printed, tolerance) == same


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(n): return 10**5000", "1" + "0" * 5000),
        ("def f(n): return len(str(n))", "5000"),
        ("def f(n): return {10, 2}", "[2, 10]"),
        ("def f(n): return {'a': {(1, 2.0000000000001), (3, 4)}}", '{"a": [[3, 4], [1, 2]]}'),
        ("class Solution:\n    def f(self, n) -> List[int]: return deque([inf > n])[0] and gcd(4, 6)", "2"),
        ("class Solution:\n    def f(self, n): return Counter('aab')", '{"a": 2, "b": 1}'),
        (
            "def f(n): return g(20000)\ndef g(n): return n and g(n - 1)",
            "0",
        ),
        ("import os\ndef f(n):\n    os.close(1); print(n); return 3", 3),
        ("import threading as t\ndef f(n):\n    t.Thread(target=t.Event().wait).start(); return 3", 3),
        ("import inspect\ndef f(n): return inspect.getsource(f)[:3]", '"def"'),
    ],
)
async def test_calls_in_leetcodes_form(sandbox: Sandbox, source: str, expected: str) -> None:
    text = f'{{"cases": [{{"call": "f", "args": [{"9" * 5000}], "expected": {expected}}}]}}'
    found = await CodeReward(sandbox, 2).judge(question("code", "", text), fenced(source), False)
    assert found.correct, found.feedback


@pytest.mark.parametrize("name", ["search", "gcd", "copy", "f"])
async def test_a_method_is_not_mistaken_for_what_is_imported_for_it(sandbox: Sandbox, name: str) -> None:
    tests = {"cases": [{"call": name, "args": [1], "expected": 7}]}
    assert (await judge(sandbox, tests, f"class Solution:\n    def {name}(self, n): return 7")).correct
    assert (await judge(sandbox, tests, f"def {name}(n): return 7")).correct
    assert not (await judge(sandbox, tests, "def g(n): return 7")).correct


def test_a_set_is_not_a_list() -> None:
    def gave(value: object) -> str:
        return json.dumps(value).replace('"set"', json.dumps(SET))

    assert code.same_output(call_case([1, 2]), gave({"set": [2, 1]}))
    assert not code.same_output(call_case([1, 1]), gave({"set": [1]}))
    assert not code.same_output(call_case([1, 2]), gave({"set": [1, 3]}))
    assert not code.same_output(call_case([1, 2]), "[2, 1]")
    assert code.same_output(call_case([[1, 2], [3]]), gave({"set": [{"set": [3]}, {"set": [2, 1]}]}))
    assert code.same_output(call_case([0.3, *range(1, 999)]), gave({"set": [*range(998, 0, -1), 0.1 + 0.2]}))


def test_a_value_that_json_lacks_does_not_equal_its_text() -> None:
    assert not code.same_output(call_case("Decimal('5')"), json.dumps({OTHER: "Decimal('5')"}))

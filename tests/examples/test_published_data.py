"""The run files of published datasets read rows of the published shape. The rows are our own."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from functools import partial
from typing import Any

import pytest

from services.contracts.messages import Question
from services.contracts.questions.formats import same
from services.contracts.questions.reading import attempts
from services.contracts.run_file import check
from tests.conftest import ROOT
from turnout.cli.run_file import read_run_file

PRIVATE = [{"input": "[2, 3]\n4", "output": "9", "testtype": "functional"}]
TOOL = {"Name": "Tides", "NLDocumentation": "getTide: height of the sea. Parameters: {port}"}
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gsm8k": ({"question": "A crate has 6 jars, how many have 3?", "answer": "6*3=<<6*3=18>>18\n#### 18"},) * 2,
    "math": (
        {
            "problem": "Solve $2x = 1$.",
            "level": "Level 3",
            "type": "Algebra",
            "solution": r"Halve it: $x = \boxed{\frac{1}{2}}$.",
        },
    )
    * 2,
    "deepscaler": (
        {"problem": "What is $1 + 1$?", "answer": "2", "solution": "Count."},
        {"problem": "Solve $2x = 1$.", "level": "Level 1", "type": "Algebra", "solution": r"$\boxed{\frac{1}{2}}$"},
    ),
    "sciknoweval": (
        {
            "question": "Which metal is liquid at room temperature?",
            "choices": {"text": ["mercury", "iron", "gold", "tin"], "label": ["A", "B", "C", "D"]},
            "answerKey": "A",
            "type": "mcq-4-choices",
            "domain": "Chemistry",
            "details": {"level": "L1"},
            "answer": "",
            "prompt": {"default": "Choose one option."},
        },
    )
    * 2,
    "toolalpaca": (
        TOOL
        | {
            "Instances": [
                {
                    "input": "How high is the sea at Brest?",
                    "output": "3 m",
                    "intermediate_steps": [[["getTide", '{"port": "Brest"}', "Action: getTide"], "3 m"]],
                }
            ]
        },
        TOOL
        | {
            "Instructions": ["How high is the sea at Brest?", "And at Hull?"],
            "Golden_Answers": [
                [{"Action": "getTide", "Action_Input": f'{{"port": "{port}"}}'}] for port in ("Brest", "Hull")
            ],
        },
    ),
    "mbpp": (
        {
            "task_id": 1,
            "text": "Write a function to add two numbers.",
            "code": "def plus(a, b):\n    return a + b",
            "test_list": ["assert plus(1, 2) == 3", "assert plus(-1, 1) == 0"],
            "test_setup_code": "",
            "challenge_test_list": [],
        },
    )
    * 2,
    "livecodebench": (
        {
            "question_title": "Sum",
            "question_content": "Return the sum.",
            "platform": "leetcode",
            "question_id": "1",
            "starter_code": "class Solution:\n    def total(self, a, b):\n        ",
            "difficulty": "easy",
            "public_test_cases": json.dumps([{"input": "[1]\n2", "output": "3", "testtype": "functional"}]),
            "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(PRIVATE)))).decode(),
            "metadata": '{"func_name": "total"}',
        },
    )
    * 2,
}
ANSWERS = {
    "gsm8k": "18",
    "math": r"\frac{1}{2}",
    "deepscaler": "2",
    "sciknoweval": "A",
    "toolalpaca": '[{"Action": "getTide", "Action_Input": "{\\"port\\": \\"Brest\\"}"}]',
}


def questions(name: str) -> list[Question]:
    """Those of one row for each source of a run file: of the first shape for the first, of the second for the rest."""
    config = check(read_run_file(ROOT / "examples" / "runs" / f"{name}-srpo.yaml"))
    found: list[Question] = []
    for number, (_, source) in enumerate(config.data.sources()):
        row = ROWS[name][min(number, 1)]
        for _, question in attempts(source, [("row", partial(same, row))]):
            assert isinstance(question, Question), question
            found.append(question)
    return found


@pytest.mark.parametrize("name", ROWS)
def test_a_published_row_becomes_a_question(name: str) -> None:
    first = questions(name)[0]
    assert first.answer == ANSWERS.get(name, first.answer)


def test_programs_have_all_their_cases() -> None:
    for name, call, expected in (("mbpp", "plus", 0), ("livecodebench", "total", 9)):
        cases = json.loads(questions(name)[0].tests)["cases"]
        assert [case["call"] for case in cases] == [call, call]
        assert cases[1]["expected"] == expected


def test_each_instruction_of_a_tool_is_a_question() -> None:
    _, *found = questions("toolalpaca")
    assert [item.prompt.splitlines()[-1] for item in found] == ["How high is the sea at Brest?", "And at Hull?"]

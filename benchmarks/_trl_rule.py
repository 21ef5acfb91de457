"""The rule of reward for TRL's processes, whose environment lacks the verifier's packages. Needs only Python."""

import json
import re

from examples.embedded.benchmark import Question, is_right


def judge(row: dict, text: str) -> float:
    """1 if the response to a row of the examples' data is right by the verifier's rule for its kind, else 0."""
    tests = row["tests"] if isinstance(row["tests"], dict) else json.loads(row["tests"])
    if row["kind"] == "recall":
        return float(is_right(Question(tuple(tests["facts"])), text))
    flags = re.IGNORECASE if tests["ignore_case"] else 0
    find = re.fullmatch if tests["full"] else re.search
    return float(find(row["answer"], text, flags) is not None)

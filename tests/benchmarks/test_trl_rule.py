"""TRL's processes give the verifier's rewards, so that both programs of the comparison train on the same task."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks._trl_rule import judge
from services.contracts.messages import Question
from services.verifier.rewards import registry
from tests.conftest import ROOT


def texts(row: dict[str, Any]) -> list[str]:
    """Right and wrong responses, in forms that a policy may give them."""
    tests = row["tests"] if isinstance(row["tests"], dict) else json.loads(row["tests"])
    if row["kind"] == "regex":
        answer = row["answer"].split("(?:")[-1].split(")")[0].split("|")[0]
        return [answer, answer.lower(), f"It is {answer}.", f"{answer}x", f"The answer is {answer} or not\nso.", ""]
    facts = tests["facts"]
    right = " ".join(f"{name}={weight}" for name, weight in facts.items())
    wrong = " ".join(f"{name}={weight + 1}" for name, weight in facts.items())
    forms = [(right, row["answer"]), (wrong, row["answer"]), (f"{wrong}; wait, {right}", row["answer"]), (right, "10")]
    replies = [f"<reasoning>{reasoning}</reasoning><answer>{total}</answer>" for reasoning, total in forms]
    return [*replies, f"{replies[0]} ", right, ""]


@pytest.mark.parametrize("file", ["embedded/data/test", "smollm2/lenient/test", "smollm2/strict/test"])
def test_a_response_earns_what_the_verifier_gives(file: str) -> None:
    rows = [json.loads(line) for line in (ROOT / "examples" / f"{file}.jsonl").read_text().splitlines()]
    seen = set()
    for row in rows:
        tests = row["tests"] if isinstance(row["tests"], str) else json.dumps(row["tests"])
        posed = Question(id=row["id"], kind=row["kind"], prompt=row["prompt"], answer=row["answer"], tests=tests)
        reward = registry.built_in()[row["kind"]].function
        assert reward is not None
        for text in texts(row):
            given = registry.checked(reward(posed, text, False)).reward
            assert judge(row, text) == given
            seen.add(given)
    assert seen == {0.0, 1.0}

"""Rewards of several parts: the mean by weight, what is correct, and the parts `length` and `format`."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.errors import InfrastructureError, QuestionError
from services.contracts.judgement import Judgement
from services.contracts.messages import Question, RewardPart, Rollout, Thinking
from services.contracts.questions.forms import LengthSettings
from services.contracts.rewards import train_parts
from services.contracts.run_config import parse_run_config
from services.verifier.judge import Judge
from services.verifier.rewards.format import judge_format
from services.verifier.rewards.length import soft_overlong
from services.verifier.rewards.registry import Opened
from tests.services.verifier.builders import question, rollout

MCQ = question("mcq", "B")
RIGHT, WRONG = rollout("<answer>B</answer>"), rollout("<answer>C</answer>")


class Scripted:
    """Judges replies as the test says, and in place of the worker pool by the reward itself."""

    def __init__(self, result: Judgement | Exception) -> None:
        self.result = result
        self.asked: list[Question] = []

    async def judge(self, asked: Question, response_text: str, truncated: bool) -> Judgement:
        self.asked.append(asked)
        if asked.kind == "format":
            return judge_format(asked, response_text, truncated)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def parts(*rewards: dict[str, Any], **model: Any) -> tuple[RewardPart, ...]:
    values = {"name": "x", "data": {"train": "t"}, "training": {"steps": 1}, "rollout": {"max_response_tokens": 4}}
    config = parse_run_config({**values, "model": {"path": "m", **model}, "rewards": list(rewards)})
    return train_parts(config.rewards, 0.5, 4) or ()


def judge(result: Judgement | Exception = Judgement(reward=0.5, correct=False)) -> Judge:  # noqa: B008
    scripted = Scripted(result)
    return Judge(scripted, {"http": Opened(scripted), "code": Opened(scripted)})


async def test_the_reward_is_the_mean_by_weight_and_the_rows_kind_decides() -> None:
    """A response of three tokens, one before the limit of four with a buffer of two."""
    rewards = parts({"kind": "row", "weight": 3}, {"kind": "http"}, {"kind": "length", "buffer_tokens": 2})
    found = await judge(Judgement(reward=0.25, correct=False, feedback="dull")).verdict(MCQ, RIGHT, rewards)
    assert found.reward == pytest.approx((3 * 1 + 0.25 + 0.5) / 5)
    assert found.parts == {"row": 1.0, "http": 0.25, "length": 0.5}
    assert (found.correct, found.solved, found.parsed_answer, found.feedback) == (True, True, "B", "dull")
    failed = await judge(Judgement(reward=1.0, correct=True)).verdict(MCQ, WRONG, rewards)
    assert failed.reward == pytest.approx((0 + 1 + 0.5) / 5)
    assert (failed.correct, failed.solves(0.0)) == (False, False)


@pytest.mark.parametrize(
    ("reward", "correct", "reply", "expected"),
    [(0.5, False, RIGHT, (False, True)), (0.4, False, RIGHT, (False, False)), (1.0, True, WRONG, (False, False))],
)
async def test_every_part_that_decides_must_be_satisfied(
    reward: float, correct: bool, reply: Rollout, expected: tuple[bool, bool]
) -> None:
    """Evaluations count the verdicts' `correct`; training compares each part with the success threshold."""
    rewards = parts({"kind": "row", "decides": True}, {"kind": "http", "weight": 0, "decides": True})
    found = await judge(Judgement(reward=reward, correct=correct)).verdict(MCQ, reply, rewards)
    assert (found.correct, found.solved) == expected
    assert found.reward == float(reply is RIGHT)


async def test_a_fault_of_one_part_is_a_fault_of_the_whole() -> None:
    rewards = parts({"kind": "row"}, {"kind": "http", "name": "style", "weight": 0})
    found = await judge(InfrastructureError("It is down.")).verdict(MCQ, RIGHT, rewards)
    assert (found.status, found.fault, found.parts) == ("infrastructure_fault", "style: It is down.", msgspec.UNSET)
    unknown = await judge().verdict(MCQ, RIGHT, parts({"kind": "row"}, {"kind": "haiku"}))
    assert "haiku: Question mcq-1 has kind 'haiku', which this verifier cannot judge" in unknown.fault


async def test_a_single_part_is_what_its_kind_says() -> None:
    for reply in (RIGHT, WRONG, rollout("B")):
        plain = await judge().verdict(MCQ, reply)
        whole = await judge().verdict(MCQ, reply, parts({"kind": "row", "weight": 7}))
        for field in ("status", "reward", "correct", "parsed_answer", "format_ok", "feedback"):
            assert getattr(whole, field) == getattr(plain, field)
        assert whole.solved == plain.solves(0.5)


async def test_a_part_has_its_own_settings_and_others_those_of_the_row() -> None:
    asked = question("http", "7", {"url": "http://x/"})
    scripted = Scripted(Judgement(reward=1.0, correct=True))
    both = Judge(scripted, {"http": Opened(scripted)})
    await both.verdict(asked, RIGHT, parts({"kind": "row"}, {"kind": "format", "requires": ["answer"]}))
    assert [(item.kind, item.answer) for item in scripted.asked] == [("http", "7"), ("format", "7")]
    assert scripted.asked[0].tests == asked.tests


async def test_thinking_that_never_ends_earns_only_what_its_length_does() -> None:
    rewards = parts({"kind": "row"}, {"kind": "format", "requires": ["answer"]}, {"kind": "length"})
    endless = msgspec.structs.replace(RIGHT, thinking=Thinking(num_tokens=3, num_characters=5, closed=False))
    found = await judge().verdict(MCQ, endless, rewards)
    assert found.parts == {"row": 0.0, "format": 0.0, "length": 1.0}
    assert found.feedback == "The thinking never ended: close it, then write the answer."


@pytest.mark.parametrize(("num_tokens", "expected"), [(0, 0.0), (1, 1.0), (None, 0.0)])
async def test_format_may_require_thinking(num_tokens: int | None, expected: float) -> None:
    rewards = parts({"kind": "row"}, {"kind": "format", "requires": ["thinking"]}, thinking={})
    thought = Thinking(num_tokens=num_tokens or 0, num_characters=0, closed=True)
    reply = RIGHT if num_tokens is None else msgspec.structs.replace(RIGHT, thinking=thought)
    found = await judge().verdict(MCQ, reply, rewards)
    assert (found.parts or {})["format"] == expected
    assert found.feedback == ("" if expected else "The reply lacks reasoning.")


@pytest.mark.parametrize(
    ("tests", "text", "missing"),
    [
        ({"requires": ["answer"]}, "So <answer>B</answer>.", ""),
        ({"requires": ["answer"]}, "<answer> </answer>", "one answer in"),
        ({"requires": ["answer"]}, "<answer>A</answer><answer>B</answer>", "one answer in"),
        ({"requires": ["answer"]}, "<answer>A", "one answer in"),
        ({"requires": ["boxed"]}, r"It is \boxed{\frac{1}{2}}.", ""),
        ({"requires": ["boxed"]}, r"It is \boxed{1", r"an answer in \boxed"),
        ({"requires": ["boxed"]}, r"It is \boxed{}", r"an answer in \boxed"),
        ({"requires": ["boxed"]}, "It is 1.", r"an answer in \boxed"),
        ({"pattern": r"(?s)\A# .+^Sources:"}, "# Title\nSources: none", "text of the form"),
        ({"pattern": r"(?ms)\A# .+^Sources:"}, "# Title\nSources: none", ""),
        ({"requires": ["answer", "boxed"]}, "1", "one answer in <answer>...</answer> and an answer in"),
    ],
)
def test_format_requires_what_it_says(tests: object, text: str, missing: str) -> None:
    found = judge_format(question("format", "", tests), text, False)
    assert (found.reward, found.correct, found.format_ok) == (float(not missing), not missing, not missing)
    assert (missing in found.feedback) if missing else not found.feedback


@pytest.mark.parametrize("tests", ["", {"pattern": "("}, {"pattern": "a?"}, {"requires": ["box"]}, {"patterns": "a"}])
def test_a_format_that_cannot_be_judged_is_a_fault(tests: object) -> None:
    with pytest.raises(QuestionError, match="tests"):
        judge_format(question("format", "", tests), "x", False)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**6))
def test_the_length_penalty_is_the_papers(limit: int, cache: int, num_tokens: int) -> None:
    """arXiv 2503.14476, equation 13, whose reward from -1 to 0 is moved up by 1."""
    cache = min(cache, limit)
    if num_tokens <= limit - cache:
        expected = 0.0
    elif num_tokens <= limit:
        expected = ((limit - cache) - num_tokens) / cache
    else:
        expected = -1.0
    found = soft_overlong(num_tokens, LengthSettings(max_tokens=limit, buffer_tokens=cache))
    assert found == pytest.approx(1 + expected, abs=1e-12)
    assert 0 <= found <= 1

"""Rewards that judge in place: what earns 1, what earns 0, and their feedback."""

from __future__ import annotations

import json
import random
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.embedded import benchmark
from services.contracts.errors import ConfigurationError, QuestionError, UnavailableError
from services.contracts.judgement import Judgement
from services.contracts.messages import Question, Thinking
from services.verifier.judge import Judge, open_judge
from services.verifier.rewards import registry
from services.verifier.rewards.replies import shorten
from services.verifier.sandbox.sandbox import Sandbox
from services.verifier.workers.pool import WorkerPool
from tests.services.verifier.builders import question, rollout

IN_PLACE = {
    kind: reward.function for kind, reward in registry.built_in().items() if reward.function and not reward.supervised
}
NESTED = [{"Action": "setTags", "Action_Input": '{"id": 3, "meta": {"tags": ["a", "b"], "note": "brace } in text"}}'}]
TWICE = [
    {"Action": "find", "Action_Input": '{"name": "x"}'},
    {"Action": "find", "Action_Input": '{"name": "y", "limit": 5}'},
    {"Action": "[Optional]update", "Action_Input": "{}"},
]
OWN_ROWS: list[dict[str, Any]] = [
    {"kind": "mcq", "answer": "B", "prompt": "?", "system": None, "tests": "-"},
    {"kind": "tooluse", "answer": json.dumps(NESTED), "prompt": "?", "system": None, "tests": None},
    {"kind": "tooluse", "answer": json.dumps(TWICE), "prompt": "?", "system": None, "tests": None},
]


def judge(asked: Question, text: str, truncated: bool = False) -> Judgement:
    return registry.checked(IN_PLACE[asked.kind](asked, text, truncated))


def calls(items: list[dict[str, str]]) -> str:
    return "\n".join(f"Thought: so.\nAction: {x['Action']}\nAction Input: {x['Action_Input']}" for x in items)


def replies_to(row: dict[str, Any]) -> tuple[str, str]:
    """A correct and a wrong reply, both well formed."""
    if row["kind"] == "mcq":
        wrong = next(letter for letter in "ABCD" if letter != row["answer"])
        template = "<reasoning>\nIt is <answer>D</answer> or so.\n</reasoning>\n<answer>\n{}\n</answer>"
        return template.format(row["answer"]), template.format(wrong)
    items = json.loads(row["answer"])
    inputs = {**json.loads(items[-1]["Action_Input"]), "surplus": 1}
    return calls(items), calls([*items[:-1], {**items[-1], "Action_Input": json.dumps(inputs)}])


def test_every_row_gives_1_to_its_reference_and_0_to_another(published_rows: list[dict[str, Any]]) -> None:
    for row in [*OWN_ROWS, *published_rows]:
        asked = question(row["kind"], row["answer"], row["tests"] or "")
        right, wrong = replies_to(row)
        good, bad = judge(asked, right), judge(asked, wrong)
        assert (good.reward, good.correct, good.format_ok, good.feedback) == (1.0, True, True, ""), row
        assert (bad.reward, bad.correct, bad.format_ok) == (0.0, False, True), row
        assert bad.feedback, row


@pytest.mark.parametrize(
    ("text", "correct", "format_ok"),
    [
        ("<answer>B</answer>", True, True),
        ("<answer> B\n</answer>  \n", True, True),
        ("<answer>A</answer> no: <answer>B</answer>", True, True),
        ("<answer>B</answer> and so on", True, False),
        ("<answer>B</answer> <answer>A</answer>", False, True),
        ("<answer>B</answer> <answer>", False, False),
        ("<answer>b</answer>", False, False),
        ("<answer>B: 1.69</answer>", False, False),
        ("</answer>B<answer>", False, False),
        ("<answer>B", False, False),
        ("B", False, False),
        ("", False, False),
    ],
)
def test_mcq_reads_the_last_answer(text: str, correct: bool, format_ok: bool) -> None:
    found = judge(question("mcq", "B"), text)
    assert (found.correct, found.reward, found.format_ok) == (correct, float(correct), format_ok)


def test_mcq_feedback_does_not_give_the_letter_away() -> None:
    assert judge(question("mcq", "B"), "<answer>C</answer>").feedback == "C is not the right option."
    assert "cut off" in judge(question("mcq", "B"), "<reasoning> on and on", truncated=True).feedback


@pytest.mark.parametrize(
    ("text", "feedback"),
    [
        ("I would call find.", "No action was found"),
        (calls([*NESTED, *NESTED]), "wrong action: setTags"),
        (
            calls([{"Action": "getTags", "Action_Input": NESTED[0]["Action_Input"]}]),
            "missing action: setTags; wrong action",
        ),
        ('Action: setTags\nAction Input: {"id": 3', "not a JSON object"),
        ("Action: setTags\nAction Input: [3]", "not a JSON object"),
        (calls([{**NESTED[0], "Action_Input": json.dumps(NESTED[0]["Action_Input"])}]), "not a JSON object"),
        (calls(NESTED) + " or so", "not a JSON object"),
        (calls(NESTED) + "}", "not a JSON object"),
        (calls(NESTED) + "\nAction Input: {oops", "not a JSON object"),
        (calls(NESTED).replace('"id": 3', '"id": 4, "id": 3'), "not a JSON object"),
        (calls(NESTED).replace('"id": 3', '"id": NaN'), "not a JSON object"),
        (calls(NESTED).replace('"id": 3', '"id": true'), 'Action Input "id" should be 3, not true.'),
        (calls(NESTED) + "\nAction Input: {}", "belongs to no Action before it"),
        ("Action Input: {}\n" + calls(NESTED), "belongs to no Action before it"),
        ('Action: setTags\nAction Input: {"id": 3}', 'lacks "meta"'),
        (calls(NESTED).replace('"id": 3', '"id": 4'), 'Action Input "id" should be 3, not 4.'),
        (calls(NESTED).replace('"id": 3', '"id": 3, "x": 0'), 'should not have "x"'),
    ],
)
def test_tooluse_feedback_names_the_first_difference(text: str, feedback: str) -> None:
    found = judge(question("tooluse", json.dumps(NESTED)), text)
    assert (found.reward, found.correct) == (0.0, False)
    assert feedback in found.feedback


EMPTY = json.dumps([{"Action": "list", "Action_Input": "{}"}])


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("Action: list\nAction Input: {}", True),
        ("Action: list. Action Input: {}\n", True),
        ("Action: list", True),
        ("Action: list\nAction Input: {oops", False),
        ("Action: list\nAction Input: none", False),
        ("Action: list\nAction Input: {}\nAction Input: {oops", False),
        ("Action:\nAction Input: {}", False),
        ("Action: list\nAction Input: {}\nThought: once more\nAction:", False),
        ("Action Input: {}\nAction: list", False),
    ],
)
def test_tooluse_rejects_unreadable_inputs_even_if_none_is_needed(text: str, correct: bool) -> None:
    found = judge(question("tooluse", EMPTY, {"partial_credit": True}), text)
    assert (found.correct, found.reward == 1.0) == (correct, correct)


@pytest.mark.parametrize(
    ("name", "written", "correct"),
    [
        ("get", "get-weather", False),
        ("get", "get.weather", False),
        ("get", "get(weather)", False),
        ("get", "get\u200b", False),
        ("get", "get weather", False),
        ("get", "get \t", True),
        ("get-weather", "get", False),
        ("weather.get", "weather", False),
        ("get", "get,", True),
        ("weather.get", "weather.get", True),
        ("get-weather/v2", "get-weather/v2", True),
        ("get weather", "get weather", True),
        ("get weather", "get weathers", False),
        ("m\u00e9t\u00e9o", "m\u00e9t\u00e9o", True),
    ],
)
def test_tooluse_names_end_with_their_line(name: str, written: str, correct: bool) -> None:
    answer = json.dumps([{"Action": name, "Action_Input": "{}"}])
    assert judge(question("tooluse", answer), f"Action: {written}\nAction Input: {{}}").correct == correct


@pytest.mark.parametrize(
    ("wanted", "given", "correct"),
    [
        ("1", "1.0", True),
        ("100", "1e2", True),
        ("1", "true", False),
        ("0", "false", False),
        ("null", "false", False),
        ("1", '"1"', False),
        ("[1]", "[true]", False),
        ('{"a": [0]}', '{"a": [false]}', False),
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', True),
        ("[1, 2]", "[2, 1]", False),
        ('"[1]"', "[1]", False),
        ("9007199254740993", "9007199254740992.0", False),
    ],
)
def test_tooluse_compares_json_with_its_types(wanted: str, given: str, correct: bool) -> None:
    answer = json.dumps([{"Action": "f", "Action_Input": f'{{"x": {wanted}}}'}])
    assert judge(question("tooluse", answer), f'Action: f\nAction Input: {{"x": {given}}}').correct == correct


def test_tooluse_does_not_search_inputs_for_calls() -> None:
    asked = [{"Action": "note", "Action_Input": '{"text": "Action: none, Action Input: {"}'}]
    assert judge(question("tooluse", json.dumps(asked)), calls(asked)).correct


def test_tooluse_ignores_order_and_partial_credit_is_a_setting() -> None:
    answer = json.dumps(TWICE)
    swapped = calls([TWICE[2], *TWICE[:2]])
    assert judge(question("tooluse", answer), swapped).correct
    half = calls([TWICE[0], TWICE[1]])
    assert judge(question("tooluse", answer), half).reward == 0.0
    found = judge(question("tooluse", answer, {"partial_credit": True}), half)
    assert (found.correct, found.reward) == (False, pytest.approx((2 / 3 + 1) / 2))


def test_recall_agrees_with_the_benchmark() -> None:
    rng = random.Random(3)
    for asked in benchmark.questions("validation"):
        row = asked.row()
        posed = question("recall", row["answer"], row["tests"])
        weights = dict(benchmark.WEIGHT)
        if rng.random() < 0.5:
            weights[rng.choice(asked.goods)] += rng.choice([0, 1])
        total = sum(weights[good] for good in asked.goods) + rng.choice([0, 0, 1])
        reasoning = " ".join(f"{good}={weights[good]}" for good in asked.goods)
        text = f"<reasoning>{reasoning}</reasoning><answer>{total}</answer>" + rng.choice(["", "", " "])
        found = judge(posed, text)
        assert found.correct == benchmark.is_right(asked, text)
        assert found.feedback == (benchmark.first_mistake(asked, reasoning) or "")


def test_recall_partial_credit_counts_facts_and_total() -> None:
    tests = {"facts": {"coal": 21, "salt": 10}, "partial_credit": True}
    text = "<reasoning>coal=21 salt=11</reasoning><answer>31</answer>"
    found = judge(question("recall", "31", tests), text)
    assert (found.correct, found.reward, found.feedback) == (False, pytest.approx(2 / 3), "salt should be 10")


def test_exact_handles_tags_settings_and_alternatives() -> None:
    assert judge(question("exact", "Paris"), "Paris\n").correct
    assert judge(question("exact", "Paris"), "I think <answer> Paris </answer>").correct
    assert not judge(question("exact", "Paris"), "It is Paris").correct
    assert not judge(question("exact", "Paris", {"where": "answer"}), "Paris").correct
    assert judge(question("exact", "Z\u00fcrich"), "Zu\u0308rich").correct
    assert not judge(question("exact", "Z\u00fcrich"), "Zurich").correct
    assert judge(question("exact", "Paris", {"accept": ["Lutetia"], "ignore_case": True}), "LUTETIA").correct


@pytest.mark.parametrize(("pattern", "text"), [(r"^\d+$", "12"), (r"^[^,]+$", "a b"), (r"^(?!.*maybe).+$", "yes")])
def test_an_optional_group_in_a_pattern_is_accepted(pattern: str, text: str) -> None:
    assert registry.built_in()["regex"].function(question("regex", pattern), text, False).correct


@pytest.mark.parametrize(
    "asked",
    [
        question("recall", "3"),
        question("recall", "3", "{broken"),
        question("tooluse", "no list"),
        question("tooluse", '[{"Action": "x"}]'),
        question("tooluse", '[{"Action": "x", "Action_Input": "{\\"a\\": 1, \\"a\\": 2}"}]'),
        question("tooluse", "[]", {"partial_credit": "yes"}),
        *(question(kind, answer) for kind in ("mcq", "exact", "regex", "tooluse") for answer in ("", " \n")),
        *(question("mcq", answer) for answer in ("2", "b", "AB", "\u0412", "true")),
        question("mcq", "B", {"ignore_case": True}),
        *(question("exact", "x", {"accept": accept}) for accept in ("x", [None], [True], [""], [["x"]])),
        question("exact", "x", {"where": "anywhere"}),
        question("exact", "x", {"ignore_case": "true"}),
        question("exact", "x", {"ignorecase": True}),
        question("exact", "x", '{"ignore_case": true, "ignore_case": false}'),
        question("exact", "x", "ignore_case"),
        *(question("regex", pattern) for pattern in ("(", ".*", "a?", ".", r"\S+", "^")),
        question("regex", ".+", {"full": True}),
        question("regex", "x", {"full": 1}),
    ],
)
def test_an_invalid_question_is_a_fault_with_a_remedy(asked: Question) -> None:
    with pytest.raises(QuestionError) as caught:
        registry.built_in()[asked.kind].function(asked, "<answer>3</answer>", False)
    assert asked.id in caught.value.message
    assert caught.value.remedy


FRAGMENTS = st.sampled_from(
    [
        *("<answer>", "</answer>", "<reasoning>", "</reasoning>", "Action:", "Action Input:", ' {"a": ', "}", "{", "["),
        *(
            "[" * 2000,
            '{"a":' * 3000,
            "1" * 5000,
            "coal=",
            '{"\\ud800": 1}',
            "NaN",
            "1e999",
            "\n",
            "\x00",
            "\U0001f600",
        ),
    ]
)
HOSTILE = st.one_of(st.text(), st.lists(st.one_of(FRAGMENTS, st.text(max_size=5)), max_size=12).map("".join))
QUESTIONS = [
    question("mcq", "B"),
    question("tooluse", json.dumps(NESTED), {"partial_credit": True}),
    question("recall", "31", {"facts": {"coal": 21, "salt(": 10}, "partial_credit": True}),
    question("exact", "Paris", {"ignore_case": True}),
]


@given(text=HOSTILE, truncated=st.booleans())
def test_no_text_makes_a_reward_raise(text: str, truncated: bool) -> None:
    for asked in QUESTIONS:
        found = judge(asked, text, truncated)
        assert 0.0 <= found.reward <= 1.0
        assert not found.correct or found.reward == 1.0
        found.feedback.encode()
        found.parsed_answer.encode()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9999, 9999) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(inputs=st.dictionaries(st.text(max_size=4), VALUES, min_size=1, max_size=4), data=st.data())
def test_an_input_is_right_however_its_json_is_written_and_wrong_if_a_value_changes(
    inputs: dict[str, Any], data: st.DataObject
) -> None:
    asked = question("tooluse", json.dumps([{"Action": "f", "Action_Input": inputs}]))

    def reply(sent: dict[str, Any]) -> str:
        turned = dict(data.draw(st.permutations(list(sent.items()))))
        written = json.dumps(
            turned, indent=data.draw(st.sampled_from([None, 2])), ensure_ascii=data.draw(st.booleans())
        )
        return f"Thought: Action\nAction: f\nAction Input: {written}"

    assert judge(asked, reply(inputs)).correct
    name = data.draw(st.sampled_from(sorted(inputs)))
    for changed in (
        inputs | {name: [inputs[name]]},
        {key: value for key, value in inputs.items() if key != name},
        inputs | {name + "_": inputs[name]},
        {"arguments": inputs},
    ):
        assert not judge(asked, reply(changed)).correct


@settings(deadline=None)
@given(noise=HOSTILE, letter=st.sampled_from("ABCD"))
def test_what_stands_before_the_last_tag_does_not_change_the_verdict(noise: str, letter: str) -> None:
    for kind, answer in (("mcq", "B"), ("exact", "B")):
        for reply in (f"{noise}<answer>{letter}</answer>", f"{noise}<answer> {letter}\n</answer>\nThat is all."):
            assert judge(question(kind, answer), reply).correct == (letter == answer)


@given(text=st.text(), limit=st.integers(20, 60))
def test_long_values_are_cut_in_the_middle(text: str, limit: int) -> None:
    short = shorten(text, limit)
    assert len(short) <= limit
    assert text == short or (text.startswith(short[: limit // 2 - 3]) and " ... " in short)


@pytest.mark.parametrize("result", [1, True, 0.5, Judgement(reward=1.0, correct=True)])
def test_a_reward_may_return_a_plain_number(result: Any) -> None:
    found = registry.checked(result)
    assert found.correct == (found.reward == 1.0)


@pytest.mark.parametrize("result", [None, "1", float("nan"), 2, -0.1, Judgement(reward=float("inf"), correct=True)])
def test_an_invalid_result_of_a_reward_is_a_fault(result: Any) -> None:
    with pytest.raises(QuestionError):
        registry.checked(result)


async def test_a_reward_that_cannot_be_opened_fails_only_its_own_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(self: Sandbox) -> None:
        raise UnavailableError("This machine has no seccomp.", remedy="Take another kernel.")

    monkeypatch.setattr(Sandbox, "start", start)
    pool = WorkerPool(num_workers=1, cpu_seconds=1, wall_seconds=60, memory_bytes=1 << 30)
    async with aclosing(pool), open_judge(pool) as judge:
        code = await judge.verdict(question("code", "", {"cases": [{"stdin": "", "stdout": "3"}]}), rollout("3"))
        mcq = await judge.verdict(question("mcq", "B"), rollout("<answer>B</answer>"))
    assert (code.status, code.fault) == ("infrastructure_fault", "This machine has no seccomp. Take another kernel.")
    assert (mcq.status, mcq.reward) == ("ok", 1.0)
    assert "no seccomp" in judge.details["code"]


@pytest.mark.parametrize(
    ("text", "thinking", "truncated", "expected"),
    [
        ("so <answer>A</answer></think>\n<answer>B</answer>", (27, True), False, (1.0, "")),
        ("so <answer>B</answer></think>\nI do not know.", (29, True), False, (0.0, "No answer was found")),
        ("so <answer>B</answer>", (21, False), False, (0.0, "The thinking never ended")),
        ("so <answer>B</answer>", (21, False), True, (0.0, "cut off at the length limit while it was still thinking")),
        ("so <answer>B</answer>", None, False, (1.0, "")),
    ],
)
async def test_rewards_read_what_follows_the_thinking(
    text: str, thinking: tuple[int, bool] | None, truncated: bool, expected: tuple[float, str]
) -> None:
    pool = WorkerPool(num_workers=1, cpu_seconds=1, wall_seconds=60, memory_bytes=1 << 30)
    thought = rollout(text, truncated=truncated)
    if thinking is not None:
        end, closed = thinking
        found = Thinking(num_tokens=1, num_characters=text.find("</think>") + 8 if closed else end, closed=closed)
        thought = msgspec.structs.replace(thought, thinking=found)
    async with aclosing(pool):
        verdict = await Judge(pool, {}).verdict(question("mcq", "B"), thought)
        unknown = await Judge(pool, {}).verdict(question("nothing", "B"), thought)
    assert (verdict.status, verdict.reward) == ("ok", expected[0])
    assert expected[1] in verdict.feedback
    assert unknown.status == "infrastructure_fault"


def test_every_reward_module_registers_one_kind() -> None:
    assert [reward.kind for reward in registry.built_in().values()] == list(registry.BUILT_IN)
    with pytest.raises(ConfigurationError, match="Two rewards"):
        registry.register("mcq")(lambda *_: 1.0)

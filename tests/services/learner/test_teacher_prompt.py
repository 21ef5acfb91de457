"""The teacher's prompt, to the letter (docs/algorithm.md, "SDPO branch")."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from transformers import AutoTokenizer

from services.contracts.messages import Question, Rollout, ScoredGroup, Thinking
from services.contracts.objectives.settings import ObjectiveSettings
from services.contracts.run_config import parse_run_config
from services.contracts.teacher_text import Wording, teacher_text
from services.learner.groups.prepare import prepare_group
from services.learner.objectives.teacher_prompt import position_warning, teacher_prompt_ids, template_warning
from services.learner.packing.sequence import TrainSequence
from services.learner.packing.shares import share_of_rank
from services.learner.program.step_report import group_metrics
from services.runtime.tokenizer import prompt_ids
from tests.services.learner.conftest import Letters, make_group
from tests.services.learner.ring import POLICY

GOLDEN = """What is 2 + 2?

Correct solution:

It is 4.

Correctly solve the original question."""
GOLDEN_WITH_FEEDBACK = """What is 2 + 2?

Correct solution:

It is 4.

The following is feedback from your unsuccessful earlier attempt:

You said 5.

Correctly solve the original question."""


def test_the_text_is_that_of_the_method() -> None:
    assert teacher_text("What is 2 + 2?", "It is 4.", None) == GOLDEN
    assert teacher_text("What is 2 + 2?", "It is 4.", "You said 5.\n") == GOLDEN_WITH_FEEDBACK
    assert teacher_text("What is 2 + 2?", None, None) == "What is 2 + 2?"
    several = teacher_text("What is 2 + 2?", "It is 4.", None, ["Four.", "4"])
    assert several == GOLDEN.replace(
        "Correct solution:\n\nIt is 4.",
        "Correct solution 1:\n\nIt is 4.\n\nCorrect solution 2:\n\nFour.\n\nCorrect solution 3:\n\n4",
    )


def test_a_group_with_fewer_correct_siblings_shows_all_there_are() -> None:
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    config = parse_run_config(values | {"objective": {"demonstrations": 3}})
    scored = make_group(0, rewards=(0.0, 1.0, 1.0))
    rollouts = [
        msgspec.structs.replace(rollout, text=f"answer {index}") for index, rollout in enumerate(scored.group.rollouts)
    ]
    scored = msgspec.structs.replace(scored, group=msgspec.structs.replace(scored.group, rollouts=rollouts))
    prepared = prepare_group(scored, config, Letters())
    text = teacher_text(scored.group.task.question.prompt, "answer 1", None, ["answer 2"])
    assert "".join(map(chr, prepared.sequences[0].teacher_prompt_ids or [])) == text
    assert [item.demonstrations for item in prepared.assignments] == [(1, 2), (2,), (1,)]


def test_the_texts_around_solution_and_feedback_are_settings() -> None:
    section = ObjectiveSettings(teacher_solution_heading="Hint:", teacher_closing="{question}")
    assert teacher_text("2 + 2?", "4", None, wording=Wording.of(section)) == "2 + 2?\n\nHint:\n\n4\n\n2 + 2?"
    bare = ObjectiveSettings(teacher_solution_heading="", teacher_feedback_heading="Wrong:", teacher_closing="")
    assert teacher_text("2 + 2?", "4", "Not 5.", wording=Wording.of(bare)) == "2 + 2?\n\n4\n\nWrong:\n\nNot 5."


def test_a_run_shows_its_own_texts_to_the_teacher_and_counts_its_own_echoes() -> None:
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    objective = {"teacher_solution_heading": "Someone answered:", "teacher_closing": ""}
    prepared = prepare_group(
        make_group(0, rewards=(1.0, 0.0)), parse_run_config(values | {"objective": objective}), Letters()
    )
    shown = "".join(map(chr, prepared.sequences[1].teacher_prompt_ids or []))
    assert "\n\nSomeone answered:\n\nanswer 0" in shown
    assert "Correct" not in shown
    assert prepared.num_echoes == 0


def test_a_group_without_a_correct_rollout_reads_the_rows_solution() -> None:
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    config = parse_run_config(values | {"objective": {"demonstration": "reference"}})
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    scored = make_group(0, rewards=(0.0, 0.0))
    question = msgspec.structs.replace(scored.group.task.question, solution="<think>hm</think>It is 4.")
    task = msgspec.structs.replace(scored.group.task, question=question)
    scored = msgspec.structs.replace(scored, group=msgspec.structs.replace(scored.group, task=task))
    expected = teacher_prompt_ids(tokenizer, question, "It is 4.", None)
    for sequence in prepare_group(scored, config, tokenizer).sequences:
        assert (sequence.route, sequence.teacher_prompt_ids) == ("sdpo", expected)
    plain = parse_run_config(values)
    assert {sequence.route for sequence in prepare_group(scored, plain, tokenizer).sequences} == {"grpo"}


def test_the_prompt_is_rendered_with_the_chat_template() -> None:
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    question = Question(id="0", kind="recall", system="Recall each weight, then add.", prompt="Total tonnes of coal?")
    ids = teacher_prompt_ids(tokenizer, question, None, None)
    messages = [{"role": "system", "content": question.system}, {"role": "user", "content": question.prompt}]
    plain = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ids == tokenizer(plain, add_special_tokens=False)["input_ids"]
    longer = teacher_prompt_ids(tokenizer, question, "The total is 24.", None)
    assert len(longer) > len(ids)
    assert longer[: len(ids) // 2] == ids[: len(ids) // 2]


class Recorded(Letters):
    """Notes what the template is given besides the messages."""

    def apply_chat_template(self, messages: list[dict[str, str]], **arguments: Any) -> list[int]:
        self.arguments = arguments
        return super().apply_chat_template(messages)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ({}, {}, {"enable_thinking": False}),
        ({"enable_thinking": True}, {}, {"enable_thinking": True}),
        (
            {"enable_thinking": True},
            {"teacher_chat_template_kwargs": {"reasoning_effort": "low"}},
            {"enable_thinking": False, "reasoning_effort": "low"},
        ),
    ],
)
def test_the_teachers_template_gets_its_own_arguments(
    student: dict[str, Any], teacher: dict[str, Any], expected: dict[str, Any]
) -> None:
    model = {"path": "m", "chat_template_kwargs": student}
    values = {"name": "r", "model": model, "data": {"train": "t"}, "training": {"steps": 1}, "objective": teacher}
    config, tokenizer = parse_run_config(values), Recorded()
    prepare_group(make_group(0, rewards=(0.0, 1.0)), config, tokenizer)
    plain = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    assert tokenizer.arguments == plain | expected
    unknown = template_warning(config, "{{ enable_thinking }}")
    assert (unknown is None) == ("reasoning_effort" not in expected)
    assert unknown is None or "objective.teacher_chat_template_kwargs.reasoning_effort" in unknown


def test_a_group_is_prepared_as_the_routing_says() -> None:
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    config = parse_run_config({"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}})
    prepared = prepare_group(make_group(0, rewards=(0.0, 1.0, 0.0, 0.0), faulty=(3,)), config, tokenizer)
    assert [sequence.route for sequence in prepared.sequences] == ["sdpo", "grpo", "sdpo", "none"]
    assert [sequence.teacher_prompt_ids is not None for sequence in prepared.sequences] == [True, False, True, False]
    assert prepared.sequences[0].teacher_prompt_ids == prepared.sequences[2].teacher_prompt_ids
    assert sum(sequence.advantage for sequence in prepared.sequences) == pytest.approx(0.0)
    shares = [share_of_rank(prepared.sequences, rank, 3) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == [0, 1, 2, 3]


@pytest.mark.parametrize("choice", ["first", "shortest", "random"])
def test_a_response_that_is_all_thinking_demonstrates_nothing(choice: str) -> None:
    """Its answer may be inside an unclosed <think>, where a reward that looks for tags finds it."""
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    config = parse_run_config(values | {"objective": {"demonstration": choice}})
    group = make_group(0, rewards=(0.0, 1.0, 1.0, 0.0))
    thought = msgspec.structs.replace(group.group.rollouts[1], text="<think>It is <answer>4</answer>")
    only_thinks = [group.group.rollouts[0], thought, *group.group.rollouts[2:]]
    prepared = prepare_group(with_rollouts(group, only_thinks), config, Letters())
    assert [assignment.demonstration for assignment in prepared.assignments] == [2, 2, None, 2]
    assert [sequence.route for sequence in prepared.sequences] == ["sdpo", "grpo", "grpo", "sdpo"]

    nothing = [*only_thinks[:2], msgspec.structs.replace(thought), only_thinks[3]]
    prepared = prepare_group(with_rollouts(group, nothing), config, Letters())
    assert [sequence.route for sequence in prepared.sequences] == ["grpo"] * 4
    assert not any(assignment.teacher_information for assignment in prepared.assignments)
    assert all(sequence.teacher_prompt_ids is None for sequence in prepared.sequences)


@pytest.mark.parametrize(
    ("model", "objective", "shown"),
    [
        ({}, {}, "It is 4."),
        ({"thinking": {}}, {}, "It is 4."),
        ({"thinking": {}}, {"demonstration_thinking": "keep"}, "<think>\nSum.</think>\nIt is 4."),
    ],
)
def test_a_demonstrations_reasoning_is_cut_unless_the_run_keeps_it(
    model: dict[str, Any], objective: dict[str, Any], shown: str
) -> None:
    """The template has opened the thinking, so the response itself does not."""
    values = {"name": "r", "model": {"path": "m"} | model, "data": {"train": "t"}, "training": {"steps": 1}}
    config = parse_run_config(values | {"objective": objective})
    scored = make_group(0, rewards=(0.0, 1.0, 1.0))
    unfinished, whole = (
        Thinking(num_tokens=2, num_characters=13, closed=False),
        Thinking(num_tokens=2, num_characters=12, closed=True),
    )
    if not model:
        unfinished = whole = msgspec.UNSET  # type: ignore[assignment]
    rollouts = [
        scored.group.rollouts[0],
        msgspec.structs.replace(scored.group.rollouts[1], text="<think>Sum. 4", thinking=unfinished),
        msgspec.structs.replace(scored.group.rollouts[2], text="Sum.</think>\nIt is 4.", thinking=whole),
    ]
    prepared = prepare_group(with_rollouts(scored, rollouts), config, Letters())
    assert [assignment.demonstration for assignment in prepared.assignments] == [2, 2, None]
    assert "".join(map(chr, prepared.sequences[0].teacher_prompt_ids or [])) == teacher_text(
        "What is 2 + 2?", shown, None
    )


def with_rollouts(scored: ScoredGroup, rollouts: list[Rollout]) -> ScoredGroup:
    return msgspec.structs.replace(scored, group=msgspec.structs.replace(scored.group, rollouts=rollouts))


def test_each_teacher_reads_its_own_rollouts_feedback() -> None:
    """Siblings share a demonstration, and thus most of their prompt, but not their feedback."""
    objective = {"feedback": "with_solution"}
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    config = parse_run_config(values | {"objective": objective})
    group = make_group(0, rewards=(0.0, 1.0, 0.0, 0.0))
    verdicts = [
        msgspec.structs.replace(verdict, feedback=feedback)
        for verdict, feedback in zip(group.verdicts, ["too low", "", "too high", "too low"], strict=True)
    ]
    prepared = prepare_group(msgspec.structs.replace(group, verdicts=verdicts), config, Letters())
    read = [sequence.teacher_prompt_ids for sequence in prepared.sequences]
    assert read[1] is None
    assert ["".join(map(chr, ids)) for ids in read if ids] == [
        teacher_text("What is 2 + 2?", "answer 1", feedback) for feedback in ("too low", "too high", "too low")
    ]


@pytest.mark.parametrize(
    ("objective", "num_positions", "warns"),
    [("srpo", 499, True), ("srpo", 500, False), ("sdpo", 499, True), ("grpo", 499, False), ("srpo", None, False)],
)
def test_a_teacher_that_may_exceed_the_models_positions_causes_a_warning(
    objective: str, num_positions: int | None, warns: bool
) -> None:
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    rollout = {"max_prompt_tokens": 100, "max_response_tokens": 200}
    config = parse_run_config(values | {"objective": {"name": objective}, "rollout": rollout})
    warning = position_warning(config, num_positions, num_positions)
    assert (warning is not None and "500 tokens" in warning and "499 positions" in warning) == warns


def test_a_wrong_hint_stands_where_the_solution_stands() -> None:
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    config = parse_run_config(values | {"objective": {"wrong_hint": 1.0, "feedback": "with_solution"}})
    scored = make_group(0, rewards=(0.0, 1.0, 0.0), feedback="No.")
    prepared = prepare_group(scored, config, Letters())
    shown = [item.wrong_hint_ids for item in prepared.sequences]
    question = scored.group.task.question.prompt
    expected = [teacher_text(question, text, "No.") for text in ("answer 2", "answer 0")]
    assert ["".join(map(chr, ids)) for ids in shown if ids] == expected
    assert shown[1] is None
    assert group_metrics([prepared], 0, 0)["wrong_hint_ratio"] == 1.0


def test_another_model_as_the_teacher_may_read_the_question_alone() -> None:
    """Then every rollout has a teacher, and its prompt is the policy's."""
    values = {"name": "r", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    fixed = {"teacher_path": "large", "teacher_update": "frozen", "demonstration": "none"}
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    scored = make_group(0, rewards=(1.0, 0.0))
    question = scored.group.task.question
    config = parse_run_config(values | {"objective": {"name": "sdpo", **fixed}})
    sequences = prepare_group(scored, config, tokenizer).sequences
    plain = prompt_ids(tokenizer, question, question.prompt)
    assert [(item.route, item.teacher_prompt_ids) for item in sequences] == [("sdpo", plain)] * 2
    config = parse_run_config(values | {"objective": {**fixed, "feedback": "alone"}})
    verdicts = [scored.verdicts[0], msgspec.structs.replace(scored.verdicts[1], feedback="Too low.")]
    sequences = prepare_group(msgspec.structs.replace(scored, verdicts=verdicts), config, tokenizer).sequences
    told = teacher_prompt_ids(tokenizer, question, None, "Too low.")
    assert [(item.route, item.teacher_prompt_ids) for item in sequences] == [("grpo", None), ("sdpo", told)]


def test_ranks_get_equal_work_and_siblings_stay_together() -> None:
    rng = random.Random(0)
    sequences = []
    for group in range(16):
        for _ in range(8):
            response = [1] * rng.randint(1, 60)
            sequences.append(TrainSequence([group] * 30, response, [-1.0] * len(response), 1.0, "grpo", None))
    shares = [share_of_rank(sequences, rank, 3) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(128))
    work = [sum(len(sequences[i].response_ids) for i in share) for share in shares]
    assert max(work) - min(work) <= 2 * 90
    homes = [{rank for rank in range(3) for i in shares[rank] if i // 8 == group} for group in range(16)]
    assert sum(len(home) > 1 for home in homes) <= 2
    assert [share_of_rank([], rank, 3) for rank in range(3)] == [[], [], []]

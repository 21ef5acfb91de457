"""The section `rewards`: what tasks carry of it, and the error for each field that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.contracts import codec
from services.contracts.errors import ConfigurationError
from services.contracts.evaluations.request import parse_request, part_of_run_file, services_config
from services.contracts.messages import PromptTask
from services.contracts.questions.forms import judge_settings
from services.contracts.rewards import deciding_parts
from services.contracts.run_config import RunConfig, parse_run_config
from services.contracts.run_file import check, read_run_text
from tests.unit.contracts.examples import TASK
from turnout.cli.run_file import load_run

HEAD = (
    "name: x\nmodel: {path: m}\ndata: {train: t}\ntraining: {steps: 1}\nrollout: {max_response_tokens: 100}\nrewards:\n"
)


def run(*rewards: dict[str, Any], **sections: Any) -> RunConfig:
    values = {"name": "x", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 1}}
    return parse_run_config({**values, "rewards": list(rewards), **sections})


def test_tasks_carry_every_part_with_its_settings() -> None:
    config = run(
        {"kind": "row", "weight": 2},
        {"kind": "length", "weight": 0.5},
        {"kind": "length", "name": "brief", "max_tokens": 50, "buffer_tokens": 20, "weight": 0},
        {"kind": "format", "requires": ["boxed"], "pattern": "^So"},
        {"kind": "haiku"},
        rollout={"max_response_tokens": 99},
        objective={"success_threshold": 0.75},
    )
    parts = config.train_parts()
    assert parts is not msgspec.UNSET
    assert [(part.name, part.kind, part.weight) for part in parts] == [
        ("row", "row", 2),
        ("length", "length", 0.5),
        ("brief", "length", 0),
        ("format", "format", 1),
        ("haiku", "haiku", 1),
    ]
    assert [part.threshold for part in parts] == [0.75, *[msgspec.UNSET] * 4]
    assert [part.tests for part in parts] == [
        msgspec.UNSET,
        '{"max_tokens":99,"buffer_tokens":20}',
        '{"max_tokens":50,"buffer_tokens":20}',
        '{"requires":["boxed"],"pattern":"^So"}',
        msgspec.UNSET,
    ]
    task = msgspec.structs.replace(TASK, rewards=parts)
    assert codec.decode(codec.encode(task), PromptTask) == task


def test_a_judge_has_the_runs_threshold_unless_it_has_its_own() -> None:
    """It holds in training and in evaluations, and travels with the rubric."""
    row, judge = {"kind": "row"}, {"kind": "judge", "rubric": "Is it kind?", "decides": True}
    cases: tuple[tuple[dict[str, Any], float], ...] = (({}, 0.25), ({"threshold": 0.8, "scale": [1, 5]}, 0.8))
    for given, expected in cases:
        parts = run(row, judge | given, objective={"success_threshold": 0.25}).train_parts()
        assert parts is not msgspec.UNSET
        found = judge_settings(msgspec.structs.replace(TASK.question, kind="judge", tests=parts[1].tests))
        assert (found.rubric, found.scale, found.threshold) == (
            "Is it kind?",
            tuple(given.get("scale", (0, 10))),
            expected,
        )


def test_evaluations_ask_only_what_decides() -> None:
    config = run({"kind": "row"}, {"kind": "length"}, {"kind": "http", "weight": 0, "decides": True})
    (found,) = deciding_parts(config.train_parts()) or ()
    assert (found.kind, found.weight) == ("http", 1)
    assert deciding_parts(run().train_parts()) is run().train_parts() is msgspec.UNSET


def test_an_evaluation_has_the_parts_of_its_run_or_its_own() -> None:
    """A part of kind length never decides, and its limit may be above that of the evaluation."""
    rewards: list[dict[str, Any]] = [{"kind": "row"}, {"kind": "length", "max_tokens": 900}]
    stored = run(*rewards, rollout={"max_response_tokens": 900}, data={"train": "t", "validation": "v"}).model_dump()
    asked = {"run": "r", "rollout": {"max_response_tokens": 100}}
    assert [part.kind for part in services_config(parse_request(asked), stored).rewards] == ["row"]
    own = asked | {"rewards": [{"kind": "http", "decides": True}]}
    assert [part.kind for part in services_config(parse_request(own), stored).rewards] == ["http"]
    file = {"name": "x", "model": {"path": "m"}, "data": {"train": "t", "validation": "v"}, "rewards": rewards[:1]}
    alone = services_config(parse_request(part_of_run_file(file)), None)
    assert [part.kind for part in alone.rewards] == ["row"]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("kind: Length", "Line 7: rewards.0.kind is 'Length'; write length"),
        ("kind: math", "Line 7: rewards.0.kind is math, which reads a row's answer; give it to the rows"),
        ("{kind: row, weight: -1}", "Line 7: rewards.0.weight is -1: input should be greater than or equal to 0"),
        ("{kind: row, decide: true}", "Line 7: rewards.0.decide is not a field (perhaps rewards.decides is meant)"),
        ("{weight: 1}", "Line 7: rewards.0.kind is missing"),
        ("{kind: row, weight: 0}", "Line 7: rewards.0.weight is 0, as every other weight"),
        ("kind: http", "Line 7: rewards.0.decides is not true for any part; add a part of kind row"),
        ("{kind: row, pattern: a}", "Line 7: rewards.0.pattern is 'a', but kind row does not take it; remove it"),
        ("{kind: length, decides: true}", "Line 7: rewards.0.decides is true, but a length says nothing"),
        ("{kind: length, max_tokens: 101}", "Line 7: rewards.0.max_tokens is 101, but rollout.max_response_tokens"),
        ("{kind: length, buffer_tokens: 101}", "Line 7: rewards.0.buffer_tokens is 101, more than the limit of 100"),
        ("kind: format", "Line 7: rewards.0.kind is format, which requires nothing; set requires or pattern"),
        ("{kind: format, requires: [box]}", "Line 7: rewards.0.requires.0 is 'box': input should be 'answer', 'boxed'"),
        ("{kind: format, requires: [thinking]}", "Line 7: rewards.0.requires has thinking, but model.thinking is null"),
        ("{kind: format, pattern: '('}", "Line 7: rewards.0.pattern is '(', not a regular expression"),
        ("{kind: format, pattern: 'a*'}", "Line 7: rewards.0.pattern is 'a*', which an empty answer satisfies"),
        ("{kind: judge, decides: true, rubric: ' '}", "Line 7: rewards.0.rubric is ' ': string should match pattern"),
        ("{kind: judge, decides: true, threshold: 2}", "Line 7: rewards.0.threshold is 2: input should be less than"),
        ("{kind: judge, decides: true, scale: [5, 1]}", "Line 7: rewards.0.scale is [5.0, 1.0], whose second number"),
        ("{kind: judge, decides: true, scale: 5}", "Line 7: rewards.0.scale is 5: "),
        ("kind: row\n  - {kind: judge, threshold: 0.5}", "Line 8: rewards.1.threshold is 0.5, but the part does not"),
        ("{kind: length, rubric: Be nice.}", "Line 7: rewards.0.rubric is 'Be nice.', but kind length does not take"),
        ("kind: judges", "Line 7: rewards.0.kind is 'judges'; write judge"),
        ("kind: row\n  - kind: row", "Line 8: rewards.1.kind is row for a second time"),
        ("kind: row\n  - {kind: http, name: row}", "Line 8: rewards.1.name is 'row', as another one's"),
    ],
)
def test_a_wrong_field_is_named_with_line_value_and_remedy(part: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(read_run_text(f"{HEAD}  - {part}\n"))
    assert words in caught.value.message


def test_a_pattern_that_takes_exponential_time_is_named_with_line_value_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"{HEAD}  - kind: row\n  - kind: format\n    pattern: '(a+)+$'\n")
    with pytest.raises(ConfigurationError) as caught:
        load_run(path)
    assert str(caught.value).startswith(f"{path}, line 9: rewards.1.pattern is '(a+)+$', which takes exponential time")
    assert "Rewrite it" in caught.value.remedy
    path.write_text(path.read_text().replace("(a+)+$", "a+$"))
    assert load_run(path)["rewards"][1]["pattern"] == "a+$"

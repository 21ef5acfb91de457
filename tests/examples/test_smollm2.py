"""The questions for SmolLM2: the files are what the script makes, splits share no fact, rewards judge as they say."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import pytest

from examples.smollm2 import questions
from services.contracts.experiments.experiment import Cell, parse_experiment, run_config
from services.contracts.messages import Question
from services.contracts.run_file import check
from services.verifier.rewards.regex import judge_regex
from tests.conftest import ROOT
from turnout.cli.run_file import read_run_file

FOLDER = ROOT / "examples" / "smollm2"


def judged(question: questions.Question, reward: questions.Reward, response: str) -> float:
    row = question.row(reward)
    asked = Question(id="0", kind="regex", prompt="", answer=str(row["answer"]), tests=json.dumps(row["tests"]))
    return judge_regex(asked, response, False).reward


@pytest.mark.parametrize("reward", questions.REWARDS)
@pytest.mark.parametrize("split", questions.SPLITS)
def test_the_files_are_what_the_script_makes(split: questions.Split, reward: questions.Reward) -> None:
    assert (FOLDER / reward / f"{split}.jsonl").read_text(encoding="utf-8") == questions.text(split, reward)


def test_there_are_enough_questions_of_every_topic() -> None:
    made = list(questions.questions())
    by_split = Counter(question.split for question in made)
    assert by_split["train"] >= 400
    assert min(by_split["validation"], by_split["test"]) >= 100
    assert {(question.topic, question.split) for question in made} == {
        (topic, split) for topic in questions.TOPICS for split in questions.SPLITS
    }


def test_no_fact_is_in_two_splits_and_no_question_is_asked_twice() -> None:
    splits = defaultdict(set)
    for question in questions.questions():
        splits[question.fact].add(question.split)
    assert {len(found) for found in splits.values()} == {1}
    prompts = Counter(question.prompt for question in questions.questions())
    assert prompts.most_common(1)[0][1] == 1


def test_no_question_gives_its_answer_away() -> None:
    for question in questions.questions():
        assert judged(question, "lenient", question.prompt) == 0, question.prompt


def test_the_right_answer_earns_both_rewards_and_a_sentence_only_the_lenient_one() -> None:
    for question in questions.questions():
        for answer in question.answers:
            for response in (answer, f"{answer}.", f" {answer}\n"):
                assert judged(question, "lenient", response) == judged(question, "strict", response) == 1
            sentence = f"I think that it is {answer}, is it not?"
            assert (judged(question, "lenient", sentence), judged(question, "strict", sentence)) == (1, 0)
            assert judged(question, "lenient", f"x{answer}x") == judged(question, "strict", f"x{answer}x") == 0


@pytest.mark.parametrize("name", ["experiment.yaml", "experiment-strict.yaml"])
def test_experiments_are_valid_and_report_on_questions_that_tuning_has_not_seen(name: str) -> None:
    experiment = parse_experiment(read_run_file(FOLDER / name).values)
    for method in experiment.methods:
        final, tuning = (run_config(experiment, Cell.of(phase, method, 0, 1)) for phase in ("final", "tuning"))
        assert {final.data.train, final.data.validation, tuning.data.validation} == {
            f"examples/smollm2/{'strict' if 'strict' in name else 'lenient'}/{split}.jsonl"
            for split in questions.SPLITS
        }


@pytest.mark.parametrize("name", ["lora", "options", "refill", "wording"])
def test_experiments_without_tuning_are_valid_and_report_on_test_questions(name: str) -> None:
    experiment = parse_experiment(read_run_file(FOLDER / f"experiment-{name}.yaml").values)
    assert experiment.tuning is None
    for method in experiment.methods:
        validation = run_config(experiment, Cell.of("final", method, 0, 1)).data.validation
        assert isinstance(validation, str)
        assert validation.endswith("/test.jsonl")


@pytest.mark.parametrize("name", ["srpo.yaml", "srpo-lora.yaml"])
def test_run_files_are_valid(name: str) -> None:
    config = check(read_run_file(FOLDER / name))
    assert config.objective.name == "srpo"
    assert config.data.validation != config.data.train
    assert (config.model.lora is not None) == ("lora" in name)

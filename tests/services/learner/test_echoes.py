"""A policy that imitates how its teacher was asked shows in a number."""

from __future__ import annotations

import msgspec
import pytest

from services.contracts.messages import Question, Turn
from services.contracts.objectives.settings import ObjectiveSettings
from services.learner.objectives.echoes import num_echoes
from services.learner.program.step_report import group_metrics
from tests.services.learner.test_step_report import prepared

DEFAULT = ObjectiveSettings()


def test_words_of_the_headings_count_unless_the_question_has_them() -> None:
    question = Question(id="q", kind="regex", prompt="What is the capital of Iran?", system="Answer briefly.")
    assert num_echoes(question, ["Tehran.", "The CORRECT answer is Tehran.", "A solution: Tehran"], DEFAULT) == 2
    assert num_echoes(question, ["The corrected answer", "It is incorrect"], DEFAULT) == 0, "whole words only"
    asked = msgspec.structs.replace(question, history=(Turn(role="user", content="Is this correct?"),))
    assert num_echoes(asked, ["The correct answer is Tehran.", "A solution: Tehran"], DEFAULT) == 1
    own = ObjectiveSettings(teacher_solution_heading="Others wrote:", teacher_closing="{question}")
    assert num_echoes(question, ["The correct answer is Tehran.", "The others know."], own) == 1


def test_a_step_counts_its_usable_rollouts() -> None:
    groups = prepared()
    assert group_metrics(groups, 3, 0)["teacher_wording_ratio"] == 0
    object.__setattr__(groups[0], "num_echoes", 1)
    assert group_metrics(groups, 3, 0)["teacher_wording_ratio"] == pytest.approx(1 / 5)

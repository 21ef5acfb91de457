"""The experiment of the paper's Table 1: its benchmarks, its settings, and rows of the datasets' shape."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from services.contracts.experiments.experiment import Cell, ExperimentConfig, parse_experiment, run_config
from services.contracts.messages import Question
from services.contracts.questions.formats import same
from services.contracts.questions.reading import attempts
from tests.conftest import ROOT
from turnout.cli.commands.experiments import read_values

FOLDER = ROOT / "examples/experiments/paper"
BENCHMARKS = ("chemistry", "physics", "biology", "materials", "tooluse")
ROW: dict[str, Any] = {"idx": 7, "dataset": "d", "description": "", "elo": 0}
CHOICE = ROW | {
    "kind": "mcq",
    "system": "Reply <reasoning>...</reasoning><answer>...</answer>.",
    "prompt": "Which metal is liquid at room temperature?\nA: mercury\nB: iron\nC: gold\nD: tin",
    "answer": "A",
    "tests": "{}",
    "embedding": [0.5, -0.5],
}
TOOL = ROW | {
    "kind": "tooluse",
    "system": None,
    "prompt": "Tools: getTide: height of the sea. Parameters: {port}\nHow high is the sea at Brest?",
    "answer": '[{"Action": "getTide", "Action_Input": "{\\"port\\": \\"Brest\\"}"}]',
    "tests": None,
}
SLOWEST, FASTEST = 91.5, 71.0
"""Seconds per step in the paper, with Qwen3-8B on eight H20 GPUs."""


def experiment(benchmark: str, *settings: str) -> ExperimentConfig:
    return parse_experiment(read_values([FOLDER / "methods.yaml", FOLDER / f"{benchmark}.yaml"], settings))


def test_every_benchmark_has_its_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {"methods", *BENCHMARKS}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_rows_of_the_datasets_shape_become_questions(benchmark: str) -> None:
    found = experiment(benchmark)
    row = TOOL if benchmark == "tooluse" else CHOICE
    sources = set()
    for cell in (Cell.of("tuning", "srpo", 0, 101), Cell.of("final", "srpo", 0, 1)):
        for _, source in run_config(found, cell).data.sources():
            sources.add(source.path)
            ((_, question),) = attempts(source, [("row", partial(same, row))])
            assert isinstance(question, Question), question
            assert (question.kind, question.answer) == (row["kind"], row["answer"])
    assert len(sources) == 4, "tuning shares no file with the final runs"


def test_methods_have_the_papers_settings() -> None:
    found = experiment("chemistry")
    rates = {"grpo": 1e-6, "sdpo": 1e-5, "srpo": 5e-6}
    for method in found.methods:
        grid = [point["optimizer.learning_rate"] for point in found.points(method)]
        assert rates.get(method, rates["srpo"]) in grid
        config = run_config(found, Cell.of("final", method, 0, 1))
        assert config.preset == f"paper-{method if method in rates else 'srpo'}"
        assert (config.evaluation.num_samples, config.rollout.max_response_tokens) == (16, 8192)
    mix = run_config(found, Cell.of("final", "advantage-mix", 0, 1)).objective
    assert (mix.name, mix.mix_lambda) == ("advantage_mix", 0.9)
    assert run_config(found, Cell.of("final", "srpo-without-weighting", 0, 1)).objective.beta == 0


def test_steps_and_evaluations_serve_the_papers_budgets() -> None:
    found = experiment("physics", "run.model.path=models/qwen3-4b")
    assert found.run["model"]["path"] == "models/qwen3-4b"
    assert found.budgets.seconds == (3600, 18000, 36000)
    for method in found.methods:
        config = run_config(found, Cell.of("final", method, 0, 1))
        every = config.evaluation.every_steps
        assert every is not None
        assert config.training.steps >= 36000 / FASTEST - every
        assert 3600 / SLOWEST / every >= 3

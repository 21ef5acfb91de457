"""Experiments from the command line: files with their faults, the overview, the report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.contracts.errors import ConfigurationError
from services.contracts.experiments.experiment import num_runs, parse_experiment
from services.contracts.records import (
    ClaimResult,
    CurvePoint,
    Estimate,
    Experiment,
    ExperimentRun,
    MethodResult,
    Results,
)
from turnout.cli.commands.experiments import read_values
from turnout.cli.views.experiment import overview_lines
from turnout.cli.views.experiment_report import write_report

SHIPPED = sorted(Path("examples/experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_experiment_is_valid(path: Path) -> None:
    experiment = parse_experiment(read_values([path]))
    assert num_runs(experiment) > 1
    for method in experiment.methods:
        assert experiment.points(method)


def test_a_fault_is_shown_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("name: x\nrun: {}\nmethods: {a: {}}\nfinal: {seeds: []}\n")
    with pytest.raises(ConfigurationError, match=r"wrong\.yaml, line 4: .*final\.seeds"):
        read_values([path])


def test_files_and_settings_are_laid_over_one_another(tmp_path: Path) -> None:
    below, above = tmp_path / "below.yaml", tmp_path / "above.yaml"
    below.write_text(
        "name: below\nrun:\n  model: {path: m}\n  training: {steps: 4}\nmethods: {a: {}, b: {}}\nfinal: {seeds: [1]}\n"
    )
    above.write_text("name: above\nrun:\n  data: {train: t, validation: v}\n")
    values = read_values([below, above], ["final.seeds=[1, 2]", "run.training.steps=8"])
    assert (values["name"], values["final"]["seeds"]) == ("above", [1, 2])
    assert values["run"]["training"] == {"steps": 8}
    assert values["run"]["model"] == {"path": "m"}
    assert values["run"]["data"] == {"train": "t", "validation": "v"}
    with pytest.raises(ConfigurationError, match=r"^--set: .*final\.seeds"):
        read_values([below, above], ["final.seeds=[]"])
    with pytest.raises(ConfigurationError, match=r"below\.yaml, line 5: .*methods\.a"):
        read_values([below])
    above.write_text(above.read_text() + "budgets: {steps: [9]}\n")
    with pytest.raises(ConfigurationError, match=r"above\.yaml, line 4: .*budgets\.steps"):
        read_values([below, above])


def run(method: str, phase: str, seed: int, **fields: Any) -> ExperimentRun:
    values: dict[str, Any] = {"run_id": None, "state": None, "step": 0, "num_steps": 10, "accuracy": None} | fields
    cell = f"{phase}/{method}/0/{seed}"
    return ExperimentRun(
        cell=cell, phase=phase, method=method, values={"optimizer.learning_rate": 0.0002}, seed=seed, **values
    )


def experiment(**fields: Any) -> Experiment:
    values: dict[str, Any] = {
        "id": "two-3f",
        "name": "two",
        "state": "running",
        "reason": "",
        "digest": "0" * 64,
        "created_at": 0.0,
        "finished_at": None,
        "file": {"name": "two", "description": "Which <one> wins?", "last_evaluations": 3},
        "inputs": {"test.jsonl": "1" * 64},
        "chosen": None,
        "scores": None,
        "num_runs": 4,
        "seconds_left": 90.0,
        "runs": [
            run("srpo", "tuning", 11, state="succeeded", run_id="run-1", step=10, accuracy=0.5),
            run("grpo", "tuning", 11, state="running", run_id="run-2", step=4, accuracy=0.25),
        ],
    }
    return Experiment(**values | fields)


def test_the_overview_says_what_has_ended_and_what_runs() -> None:
    text = "\n".join(overview_lines(experiment()))
    assert "two: running, 1 of 4 runs ended, about 1:30 left" in text
    assert re.search(r"srpo +1/1 +- +50\.0%", text)
    assert re.search(r"grpo +0/1 +- +25\.0%", text)
    assert "running run-2 (tuning, grpo, learning_rate 0.0002, seed 11): step 4/10, accuracy 25.0%" in text


def estimate(*values: float | None) -> Estimate:
    present = [value for value in values if value is not None]
    return Estimate(mean=sum(present) / len(present), low=min(present), high=max(present), values=list(values))


def method(name: str, difference: Estimate | None, num_missing: int = 0) -> MethodResult:
    return MethodResult(
        method=name,
        before=estimate(0.1, 0.1),
        score=estimate(0.5, 0.7),
        within_steps={"10": estimate(0.4, 0.6)},
        within_seconds={},
        seconds_per_step=estimate(1.0, 2.0),
        num_collapsed=1,
        num_missing=num_missing,
        difference=difference,
        num_ahead=0 if difference is None else sum((value or 0) > 0 for value in difference.values),
        windows={"reward_mean": [0.1, 0.2, 0.3, 0.4, 0.5], "teacher_entropy_nats": [None] * 5},
        curve=[CurvePoint(step=step, seconds=2.0 * step, mean=0.5, low=0.4, high=0.6) for step in (0, 5, 10)],
    )


def test_the_report_holds_results_claims_tuning_and_the_file(tmp_path: Path) -> None:
    claim = ClaimResult(
        claim="SRPO <wins>",
        verdict="shown",
        higher=estimate(0.5, 0.7),
        lower=estimate(0.4, 0.5),
        difference=estimate(0.1, 0.2),
    )
    results = Results(
        seeds=[1, 2],
        baseline="grpo",
        methods=[
            method("srpo", estimate(0.1, 0.2)),
            method("grpo", None),
            method("sdpo", estimate(0.3, None), num_missing=1),
        ],
        claims=[claim],
    )
    chosen = {name: {"optimizer.learning_rate": 0.0002} for name in ("srpo", "grpo")}
    folder = write_report(
        experiment(chosen=chosen, scores={"srpo": [[0.5]], "grpo": [[0.25]]}), results, tmp_path / "r"
    )
    text = (folder / "report.md").read_text()
    for expected in (
        "| srpo | 10.0 [10.0, 10.0] | 50.0 [40.0, 60.0] | 60.0 [50.0, 70.0] | 1.50 [1.00, 2.00] | 1 of 2 | 0 |",
        "| sdpo | 10.0 [10.0, 10.0] | 50.0 [40.0, 60.0] | 60.0 [50.0, 70.0] | 1.50 [1.00, 2.00] | 1 of 1 | 1 |",
        "| srpo | +15.0 [+10.0, +20.0] | 2 of 2 | +10.0, +20.0 |",
        "| sdpo | +30.0 [+30.0, +30.0] | 1 of 1 | +30.0, - |",
        "| SRPO &lt;wins&gt; | shown |",
        "| srpo | optimizer.learning_rate 0.0002 | 50.0 | 50.0 | chosen |",
        "test.jsonl, SHA-256",
    ):
        assert expected in text
    assert "Teacher entropy" not in text, "no method has one"
    stored = text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(stored) == experiment().file
    assert {path.name for path in folder.iterdir()} == {
        "accuracy_by_seconds.png",
        "accuracy_by_steps.png",
        "report.html",
        "report.md",
        "results.json",
    }
    page = (folder / "report.html").read_text()
    assert "SRPO &lt;wins&gt;" in page
    assert "<one>" not in page
    assert "http" not in re.sub(r"data:image[^\"]*", "", page)

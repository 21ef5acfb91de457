"""Times by formula: a step, an evaluation, an experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.contracts import pace, planner, sizing
from services.contracts.experiments.forecast import num_evaluations
from services.contracts.pace import FAST, KINDS, SLOW
from services.contracts.run_config import RunConfig, parse_run_config
from tests.unit.contracts.test_planner import folder_of
from turnout.cli.main import app


def run(path: str, **sections: Any) -> RunConfig:
    training = {"steps": 500, "gradient_checkpointing": True} | sections.pop("training", {})
    values = {"name": "p", "preset": "paper-srpo", "model": {"path": path}, "training": training} | sections
    return parse_run_config({"data": {"train": "t", "validation": "v"}, **values})


@pytest.mark.parametrize(("preset", "paper"), [("paper-grpo", 71.0), ("paper-sdpo", 85.9), ("paper-srpo", 83.4)])
@pytest.mark.parametrize("response_tokens", [500, 1000])
def test_the_papers_pace_is_between_fast_and_slow(
    tmp_path: Path, preset: str, paper: float, response_tokens: int
) -> None:
    """Qwen3-8B on eight H20 GPUs, which all sample and then all train. How long responses were is not known."""
    path = folder_of(tmp_path)
    config = run(path, preset=preset, training={"num_ranks": 8}, rollout={"num_servers": 8})
    fast, slow = (item.step(0) for item in pace.times(planner.plan(config), KINDS["h20"], response_tokens))
    assert fast is not None
    assert slow is not None
    assert fast < paper < slow


def test_decoding_reads_weights_per_step_and_cache_per_sequence(tmp_path: Path) -> None:
    plan = planner.plan(run(folder_of(tmp_path)))
    server, gpu = plan.server, KINDS["h100"]
    found = pace.sampling_seconds(plan, gpu, FAST, responses=1, response_tokens=100)
    steps, cached = 200, 100 * (pace.PROMPT_TOKENS + 50)  # the longest response takes twice the mean
    assert found == pytest.approx((steps * server.weights + cached * server.kv_token) / (3.35e12 * 0.7))
    many = pace.sampling_seconds(plan, gpu, FAST, responses=200, response_tokens=100)
    assert many < 2 * found, "sequences share the reading of weights"
    slow = pace.sampling_seconds(plan, KINDS["h20"], FAST, responses=200, response_tokens=100)
    flops = pace.forward_flops(plan.shape, 200 * 400, pace.PROMPT_TOKENS + 50)
    assert slow == pytest.approx(flops / (148e12 * 0.45)), "bound by computing"


def test_training_counts_the_passes_of_the_objective(tmp_path: Path) -> None:
    path = folder_of(tmp_path)
    shape = sizing.read_shape(path)

    def passes(preset: str, **training: Any) -> float:
        config = run(path, preset=preset, training=training)
        one = pace.forward_flops(shape, 32 * pace.PROMPT_TOKENS + 256 * 500, (pace.PROMPT_TOKENS + 500) / 2)
        return pace.step_flops(config, shape, SLOW, 500) / one

    assert passes("paper-grpo") == pytest.approx(5), "forward, twice that backward, recomputation, scores"
    assert passes("paper-grpo", prompts_per_minibatch=32, gradient_checkpointing=False) == pytest.approx(3)
    assert 4 < passes("paper-srpo") < passes("paper-sdpo")


def test_evaluations_are_counted_with_the_first_and_the_last(tmp_path: Path) -> None:
    path = folder_of(tmp_path)
    assert num_evaluations(run(path, evaluation={"every_steps": 10})) == 51
    assert num_evaluations(run(path, evaluation={"every_steps": 300, "before_training": False})) == 2
    assert num_evaluations(run(path, evaluation={"every_steps": None})) == 2


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    question = {"kind": "exact", "prompt": "1 + 1", "answer": "2"}
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(question | {"prompt": f"{n}"}) for n in range(20)))
    file = tmp_path / "experiment.yaml"
    values = {
        "name": "x",
        "run": {
            "model": {"path": folder_of(tmp_path)},
            "data": {"train": str(tmp_path / "train.jsonl")},
            "training": {"steps": 100, "num_ranks": 4, "zero_stage": 3, "gradient_checkpointing": True},
            "rollout": {"num_servers": 4},
        },
        "methods": {"srpo": {"preset": "paper-srpo"}, "grpo": {"preset": "paper-grpo"}},
        "final": {"seeds": [1, 2], "changes": {"data": {"validation": str(tmp_path / "test.jsonl")}}},
    }
    file.write_text(json.dumps(values))
    return file


def test_an_experiments_needs_are_printed(experiment: Path) -> None:
    machine = ["--gpus", "8", "--gpu", "h100", "--response-tokens", "700"]
    text = CliRunner().invoke(app, ["experiments", "check", str(experiment), *machine])
    assert text.exit_code == 0, text.output
    assert "In total" in text.output
    assert "does not fit" not in text.output
    found = json.loads(CliRunner().invoke(app, ["experiments", "check", str(experiment), *machine, "--json"]).output)
    first = found["forecast"][0]
    assert (first["phase"], first["method"], first["num_runs"], first["changes"]) == ("final", "srpo", 2, {})
    assert first["disk_bytes"] == 2 * (3 * 18 + 2) * 8_190_735_360
    fast = 100 * first["step_seconds"]["fast"] + 3 * first["evaluation_seconds"]["fast"]
    assert first["run_hours"]["fast"] == pytest.approx(fast / 3600)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (["--gpus", "8"], "--gpu"),
        (["--gpus", "8", "--gpu", "tpu"], "not one of a100"),
        (["--gpus", "1", "--gpu", "h100", "--response-tokens", "700"], "Set model.lora"),
    ],
)
def test_machines_that_cannot_be_forecast_are_refused(experiment: Path, machine: list[str], words: str) -> None:
    refused = CliRunner().invoke(app, ["experiments", "check", str(experiment), *machine])
    assert refused.exit_code != 0
    assert words in str(refused.exception) + refused.output


def test_a_plan_estimates_times_for_a_kind_of_gpu(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"name: x\nmodel: {{path: {folder_of(tmp_path)}}}\ndata: {{train: t}}\ntraining: {{steps: 3}}\n")
    machine = ["--gpus", "8", "--gpu", "h100", "--response-tokens", "1000", "--sample-rate", "4000"]
    text = CliRunner().invoke(app, ["runs", "plan", str(file), *machine])
    assert "By the rates given, roughly: sampling " in text.output, text.output
    assert "By formula, with assumed efficiencies: sampling " in text.output
    found = json.loads(CliRunner().invoke(app, ["runs", "plan", str(file), *machine, "--json"]).output)
    fast, slow = found["estimated_seconds"]
    assert all(fast[name] < slow[name] for name in ("sample", "train", "push", "step"))

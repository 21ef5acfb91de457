"""Run files: all shipped ones are valid; errors name file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.contracts.errors import ConfigurationError
from services.contracts.run_file import check
from tests.conftest import ROOT, ROW
from turnout.cli.main import app
from turnout.cli.run_file import load_run, read_run_file

FILES = sorted((ROOT / "examples" / "runs").glob("*.yaml"))
GOOD = "name: x\nmodel: {path: m}\ndata: {train: t}\ntraining:\n  steps: 3\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_run_files_are_right(path: Path) -> None:
    config = check(read_run_file(path))
    assert config.name == path.stem
    assert config.data.validation is not None
    assert config.data.validation != config.data.train


def test_there_is_one_for_every_benchmark_and_method() -> None:
    names = {path.stem for path in FILES}
    benchmarks = {"chemistry", "physics", "biology", "materials", "tooluse"}
    assert {f"{name}-srpo" for name in benchmarks} <= names
    assert {"demo", "smollm2-physics", "chemistry-grpo", "chemistry-sdpo", "chemistry-srpo"} <= names
    presets = {check(read_run_file(path)).preset for path in FILES}
    assert {"paper-srpo", "paper-grpo", "paper-sdpo"} <= presets


def test_the_demo_uses_the_embedded_benchmark() -> None:
    config = check(read_run_file(ROOT / "examples" / "runs" / "demo.yaml"))
    assert config.model.path == "examples/embedded/policy"
    assert (ROOT / config.data.train).is_file()
    assert config.evaluation.num_samples == 16
    assert config.evaluation.before_training
    assert config.evaluation.after_training


def test_settings_are_laid_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    body = load_run(path, ["training.steps=50", "optimizer.learning_rate=1e-4", "evaluation.every_steps=null"])
    assert body["training"]["steps"] == 50
    assert body["optimizer"]["learning_rate"] == "1e-4" or body["optimizer"]["learning_rate"] == 1e-4
    assert body["evaluation"]["every_steps"] is None
    assert check(read_run_file(path)).training.steps == 3


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (GOOD + "  stepz: 4\n", 6, "training.stepz is not a field (perhaps training.steps is meant)"),
        (GOOD + "  num_servers: 2\n", 6, "(perhaps rollout.num_servers is meant)"),
        (GOOD + "rollout:\n  top_p: 7\n", 7, "rollout.top_p is 7"),
        (GOOD + "rollout:\n  temperature: 0\n", 7, "rollout.temperature is 0"),
        (GOOD + "name: y\n", 6, "name is given twice"),
        (GOOD + "data: [\n", 7, "expected"),
        ("- a\n", 1, "mapping"),
        ("name: x\nmodel: {path: m}\ndata: {}\ntraining: {steps: 1}\n", 3, "data.train is missing"),
        (GOOD + "preset: nope\n", 6, "preset 'nope' does not exist"),
    ],
)
def test_wrong_files_are_told_with_their_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load_run(path)
    assert f"{path}, line {line}: " in str(caught.value)
    assert says in str(caught.value)


def test_every_wrong_field_has_its_own_line(tmp_path: Path) -> None:
    for rollout in ("  top_p: 7\n  top_k: -1\n", "  group_size: 1\n  temperature: 0\n"):
        path = written(tmp_path, GOOD + "rollout:\n" + rollout)
        with pytest.raises(ConfigurationError) as caught:
            load_run(path)
        first, second = rollout.split()[::2]
        assert [line.split(" is ")[0] for line in caught.value.message.split("\n")] == [
            f"{path}, line 7: rollout.{first.strip(':')}",
            f"{path}, line 8: rollout.{second.strip(':')}",
        ]


def test_a_wrong_setting_is_told_as_such(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    with pytest.raises(ConfigurationError, match=r"with --set: training\.steps is 'many'"):
        load_run(path, ["training.steps=many"])
    with pytest.raises(ConfigurationError, match=r"section\.field=value"):
        load_run(path, ["training.steps"])
    with pytest.raises(ConfigurationError, match="name is a field, not a section"):
        load_run(path, ["name.steps=3"])


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        load_run(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [("a: &a [*a]", "line 1: *a is a YAML alias"), ("# " + "x" * 1_000_000, "more than 1000000 characters")],
    ids=["alias", "long"],
)
def test_a_file_that_is_larger_than_it_looks_is_refused_in_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load_run(path)
    assert caught.value.message.startswith(str(path))
    assert says in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[&a [1], *a, *a]", r"\*a is a YAML alias"),
        ("[" * 5000, "values are nested"),
        ("{<<: &a {x: 1}, y: *a}", r"\*a is a YAML alias"),
        ("[1", "not YAML"),
    ],
)
def test_a_setting_that_cannot_be_read_is_refused(tmp_path: Path, value: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^--set training\.steps: {says}"):
        load_run(written(tmp_path, GOOD), [f"training.steps={value}"])


def test_check_reads_every_row_of_data_that_is_here(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text(ROW * 3)
    settings = ["--set", f"data.train={data}", "--set", "data.validation=elsewhere.jsonl"]
    arguments = ["runs", "check", str(written(tmp_path, GOOD)), *settings]
    out = CliRunner().invoke(app, arguments, catch_exceptions=False).output.splitlines()
    assert out[1:] == [
        f"data.train: 3 rows of {data} checked.",
        "data.validation: elsewhere.jsonl is not here; its rows are checked where the services run.",
    ]
    data.write_text(ROW + "[]\n" + ROW)
    for more in ([], ["--json"]):
        with pytest.raises(ConfigurationError, match=r"train.jsonl, line 2: not a JSON object") as caught:
            CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)
        assert caught.value.remedy

"""The exporter with a tracker that records, and the command's refusals."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.contracts.errors import ConfigurationError, ConflictError
from tests.conftest import ROOT
from tests.unit.trackers.played import STEPS, PlayedApi, exporter_of, history, numbers_of, run_of
from turnout.cli.commands.track import read_environment
from turnout.cli.main import app
from turnout.trackers import registry
from turnout.trackers.base import COLUMNS, flat
from turnout.trackers.loop import locked
from turnout.trackers.masks import masked


class Recorder:
    """Keeps what was confirmed, as a tracker's storage does; refuses while it is `down`."""

    rewrites = False
    stored: dict[str, list[tuple[Any, ...]]] = {}
    opened: list[str] = []
    down: set[str] = set()

    def __init__(self, tracked: Any, place: Any, saved: Any) -> None:
        self.run_id, self.url = tracked.run.id, tracked.url
        self.opened.append(self.run_id)
        self.rows = self.stored.setdefault(self.run_id, [])
        del self.rows[saved.get("rows", 0) :]

    def _put(self, *row: Any) -> None:
        if self.run_id in self.down:
            raise OSError("no route to https://ada:hunter2@mlflow.example")
        self.rows.append(row)

    def numbers(self, numbers: Any) -> None:
        self._put("numbers", numbers.step, dict(numbers.values))

    def samples(self, samples: Any) -> None:
        self._put("samples", samples.step, samples.rows)

    def files(self, step: int, folder: Path) -> None:
        self._put("files", step, folder.name)

    def save(self) -> dict[str, Any]:
        return {"rows": len(self.rows)}

    def close(self, run: Any) -> None:
        if run is not None:
            self._put("end", run.step, run.state, self.url)


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    for name, empty in (("stored", {}), ("opened", []), ("down", set())):
        monkeypatch.setattr(Recorder, name, empty)
    return Recorder


def kinds(run_id: str) -> list[tuple[str, int]]:
    return [(row[0], row[1]) for row in Recorder.stored[run_id]]


WHOLE = [("numbers", 0), *(("numbers", step) for step in range(1, STEPS + 1)), ("numbers", STEPS)]


def test_a_run_that_has_ended_is_exported_once_with_every_number(tmp_path: Path) -> None:
    told: list[str] = []
    api = PlayedApi(run_of("r1"))
    exporter = exporter_of(api, Recorder, tmp_path, tell=lambda run: told.append(run.id))
    assert exporter.round()
    rows = Recorder.stored["r1"]
    numbers = [row for row in rows if row[0] == "numbers"]
    assert [(name, step) for name, step, _ in numbers] == WHOLE, "a step that was trained again is there once"
    assert [row[2] for row in numbers[1:-1]] == [numbers_of(step) for step in range(1, STEPS + 1)]
    assert numbers[0][2] == {
        "evaluation/validation/accuracy": 0.25,
        "evaluation/validation/pass_at_k": 0.75,
        "evaluation/validation/accuracy/mcq": 0.5,
        "evaluation/validation/accuracy/math": 0.25,
    }
    samples = [row for row in rows if row[0] == "samples"]
    assert [step for _, step, _ in samples] == [5, 10]
    assert dict(zip(COLUMNS, samples[0][2][1], strict=True)) | {"step": 5, "group": "g5", "index": 1, "tokens": 2} == (
        dict(zip(COLUMNS, samples[0][2][1], strict=True))
    )
    assert rows[-1] == ("end", STEPS, "succeeded", "https://turnout.example/#/runs/r1")
    assert exporter.round()
    assert exporter_of(api, Recorder, tmp_path).round()
    assert (Recorder.opened, told) == (["r1"], ["r1"]), "it is not opened again"


def test_runs_are_followed_and_picked_up_as_they_are_created_or_resumed(tmp_path: Path) -> None:
    api = PlayedApi(run_of("old", created_at=1.0), run_of("live", created_at=2.0, state="running", finished_at=None))
    api.histories["live"] = history(4)
    exporter = exporter_of(api, Recorder, tmp_path)
    assert exporter.round()
    assert kinds("live")[-2:] == [("numbers", 4), ("numbers", 4)]
    api.all["later"] = run_of("later", created_at=3.0)
    api.histories["later"] = history(2)
    api.histories["live"] = history()
    api.change("live", created_at=2.0, state="stopped", reason="on request", finished_at=1050.0)
    assert exporter.round()
    assert [step for name, step in kinds("live") if name == "end"] == [STEPS]
    assert kinds("later")[-1] == ("end", STEPS)
    api.change("live", created_at=2.0, state="running", finished_at=None)
    exporter.round()
    api.change("live", created_at=2.0, finished_at=1200.0)
    exporter.round()
    assert Recorder.stored["live"][-1][2] == "succeeded"
    assert Recorder.opened == ["live", "old", "later", "live"]
    del api.all["old"]
    assert exporter_of(api, Recorder, tmp_path, run_ids=["old"]).round(), "a deleted run is no failure"


def test_a_tracker_that_fails_holds_up_no_other_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("turnout.trackers.loop.time.monotonic", lambda: now)
    said: list[str] = []
    api = PlayedApi(run_of("bad"), run_of("good"))
    Recorder.down.add("bad")
    exporter = exporter_of(api, Recorder, tmp_path, warn=said.append)
    assert not exporter.round()
    assert kinds("good")[-1] == ("end", STEPS)
    assert said == ["bad: OSError: no route to https://***@mlflow.example Trying again in 1 s."]
    assert not exporter.round()
    assert Recorder.opened.count("bad") == 1, "it is left alone for a second"
    Recorder.down.clear()
    now = 2.0
    assert exporter.round()
    assert Recorder.stored["bad"][:-1] == Recorder.stored["good"][:-1]


@pytest.mark.parametrize(("artifacts", "sent"), [("none", []), ("last", [("files", STEPS)])])
def test_checkpoints_are_sent_by_choice(tmp_path: Path, artifacts: str, sent: list[Any]) -> None:
    api = PlayedApi(run_of("r1"))
    (tmp_path / "checkpoint" / "hf").mkdir(parents=True)
    api.folders["r1"] = tmp_path / "checkpoint"
    exporter_of(api, Recorder, tmp_path, artifacts=artifacts).round()
    assert [row for row in kinds("r1") if row[0] == "files"] == sent


def test_a_checkpoint_that_is_elsewhere_is_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    assert exporter_of(PlayedApi(run_of("r1")), Recorder, tmp_path, artifacts="all", warn=said.append).round()
    assert said[0] == "r1: the checkpoint of step 5 is not on this machine (/nowhere/step-00000005/hf)."


def test_a_package_can_bring_a_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", f"{__name__}:Recorder", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group, name=None: [point] if name in (None, "mine") else [])
    assert registry.load("mine").__name__ == "Recorder"
    with pytest.raises(ConfigurationError, match=r"--to is nope.*mine, mlflow, tensorboard, trackio, wandb"):
        registry.load("nope")


def test_a_missing_package_is_an_error_that_names_the_extra() -> None:
    program = "import sys; sys.modules['wandb'] = None; sys.argv[1:] = ['track', '--to', 'wandb']\n"
    program += "from turnout.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'turnout[wandb]'" in done.stderr


def test_two_exporters_do_not_share_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "x"), pytest.raises(ConflictError, match="Another exporter uses"), locked(tmp_path / "x"):
        pass
    with locked(tmp_path / "x"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"), locked(tmp_path / "file" / "x"):
        pass


def test_secrets_do_not_reach_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "c0ffee" * 4)
    monkeypatch.setenv("SOME_TOKEN", "a")
    assert masked(f"401 for {'c0ffee' * 4} at https://user:pw@host/a?b") == "401 for *** at https://***@host/a?b"


def test_an_environment_file_is_read_and_its_lines_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "tracker"
    file.write_text("# for W&B\nWANDB_API_KEY=a=b\n\n  WANDB_MODE=offline\n")
    assert read_environment(file) == {"WANDB_API_KEY": "a=b", "WANDB_MODE": "offline"}
    file.write_text("secret-without-a-name\n")
    result = CliRunner().invoke(app, ["track", "--to", "tensorboard", "--environment", str(file)])
    assert isinstance(result.exception, ConfigurationError)
    assert result.exception.message == f"Line 1 of {file} is not NAME=VALUE."


def test_a_configuration_becomes_one_level() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": [1]}, "e": {}}) == {"a.b.c": 1, "a.d": [1], "e": {}}


def test_the_tracker_of_the_documentation_works(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "trackers.md").read_text()
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    api = PlayedApi(run_of("r1", state="running", finished_at=None))
    first = exporter_of(api, names["CsvTracker"], tmp_path)
    first.round()
    with (tmp_path / "r1.csv").open("a") as file:
        file.write("not confirmed\n")
    api.change("r1")
    assert exporter_of(api, names["CsvTracker"], tmp_path).round()
    lines = (tmp_path / "r1.csv").read_text().split()
    assert "12,reward_mean,0.75" in lines
    assert len(lines) == 3 * STEPS + 2 * 4

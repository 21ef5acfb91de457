"""Each tracker with its own library: everything arrives once, also if the exporter is killed, and is read back."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.contracts.errors import ConfigurationError
from tests.conftest import ROOT
from tests.unit.trackers.played import STEPS, PlayedApi, exporter_of, numbers_of, run_of

Point = tuple[str, int, float]
NUMBERS: list[Point] = sorted(
    [
        *((name, step, value) for step in range(1, STEPS + 1) for name, value in numbers_of(step).items()),
        *(
            (f"evaluation/validation/{name}", step, value)
            for step in (0, STEPS)
            for name, value in (
                ("accuracy", 0.25 + step / 32),
                ("pass_at_k", 0.75),
                ("accuracy/mcq", 0.5),
                ("accuracy/math", 0.25),
            )
        ),
    ]
)
PLAYED = "tests.unit.trackers.played"


def killed(tracker: str, folder: Path) -> None:
    """Export in a process that is killed between two saves."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", PLAYED, tracker, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


class TestTensorboard:
    @staticmethod
    def read(folder: Path) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(folder), size_guidance={"tensors": 0}, purge_orphaned_data=False).Reload()

    @staticmethod
    def text(event: Any) -> str:
        return str(event.tensor_proto.string_val[0].decode())

    def test_a_killed_export_continues_without_gap_or_double(self, tmp_path: Path) -> None:
        killed("tensorboard", tmp_path)
        assert (tmp_path / "r1.json").exists()
        assert exporter_of(PlayedApi(run_of("r1")), "tensorboard", tmp_path).round()
        found = self.read(tmp_path / "run r1 r1")
        texts = {"run", "configuration", "samples", "state"}
        tags = {tag: tag.removeprefix("reward/").removeprefix("step/") for tag in set(found.Tags()["tensors"]) - texts}
        assert tags.keys() >= {"reward/reward_mean", "step/loss", "step/seconds"}, "as the page's charts"
        assert sorted(
            (tags[tag], event.step, event.tensor_proto.float_val[0]) for tag in tags for event in found.Tensors(tag)
        ) == [(name, step, pytest.approx(value)) for name, step, value in NUMBERS]
        assert found.Tensors("reward/reward_mean")[0].wall_time == 1002.0
        assert [event.step for event in found.Tensors("samples")] == [5, 10]
        assert "a &#124; b<br>c" in self.text(found.Tensors("samples")[0])
        assert "https://turnout.example/#/runs/r1" in self.text(found.Tensors("run")[0])
        assert "| training.steps | 12 |" in self.text(found.Tensors("configuration")[0])
        assert [event.step for event in found.Tensors("state")] == [STEPS]

    def test_artifacts_and_a_lost_file_are_refused(self, tmp_path: Path) -> None:
        api = PlayedApi(run_of("r1", state="running", finished_at=None))
        with pytest.raises(ConfigurationError, match="no artifacts"):
            exporter_of(api, "tensorboard", tmp_path, artifacts="all").round()
        exporter_of(api, "tensorboard", tmp_path).round()
        next((tmp_path / "run r1 r1").iterdir()).unlink()
        with pytest.raises(ConfigurationError, match="shorter than what was exported"):
            exporter_of(api, "tensorboard", tmp_path).round()


class TestWandb:
    @staticmethod
    def records(file: Path) -> Iterator[Any]:
        """The records of an offline run: W&B's framing (LevelDB's log format) and messages."""
        from wandb.proto.wandb_internal_pb2 import Record

        data, position, whole = file.read_bytes(), 7, b""
        while position + 7 <= len(data):
            if 32768 - position % 32768 < 7:
                position += 32768 - position % 32768
            _, length, kind = struct.unpack("<IHB", data[position : position + 7])
            whole += data[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):
                record = Record()
                record.ParseFromString(whole)
                whole = b""
                yield record

    def test_a_killed_offline_run_is_replaced_by_a_whole_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "offline")
        killed("wandb", tmp_path)
        assert exporter_of(PlayedApi(run_of("r1")), "wandb", tmp_path).round()
        [file] = (tmp_path / "wandb").glob("offline-run-*-r1/run-r1.wandb")
        records = list(self.records(file))
        rows = [
            {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        points = [
            (name, row["step"], value)
            for row in rows
            for name, value in row.items()
            if not name.startswith(("_", "samples")) and name != "step"
        ]
        assert sorted(points) == NUMBERS
        assert [row["step"] for row in rows if "samples" in str(sorted(row))] == [5, 10]
        assert rows[1]["_timestamp"] == 1002.0
        [head] = [record.run for record in records if record.HasField("run")][:1]
        assert (head.run_id, head.project, head.notes) == ("r1", "project", "https://turnout.example/#/runs/r1")
        config = {item.key: json.loads(item.value_json) for item in head.config.update}
        assert config["training"] == {"steps": STEPS}
        assert config["turnout"]["run_id"] == "r1"


class TestMlflow:
    @pytest.fixture
    def server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        """URL of MLflow's own server on SQLite, in a thread."""
        from werkzeug.serving import WSGIRequestHandler, make_server

        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        for name, value in {
            "FILE_STORE": f"sqlite:///{tmp_path}/mlflow.db",
            "REGISTRY_STORE": f"sqlite:///{tmp_path}/mlflow.db",
            "ARTIFACT_ROOT": "mlflow-artifacts:/",
            "ARTIFACT_DESTINATION": str(tmp_path / "artifacts"),
            "SERVE_ARTIFACTS": "true",
        }.items():
            monkeypatch.setenv(f"_MLFLOW_SERVER_{name}", value)
        import mlflow
        from mlflow.server import app

        monkeypatch.setattr(WSGIRequestHandler, "log", lambda *_: None)
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        mlflow.MlflowClient(url).search_experiments()  # opening its database sets the URI for the whole process
        mlflow.set_tracking_uri(url)
        yield url
        mlflow.set_tracking_uri("")
        server.shutdown()
        thread.join()
        server.server_close()

    def test_a_server_has_everything_once_also_after_a_crash(self, server: str, tmp_path: Path) -> None:
        from mlflow.tracking import MlflowClient

        from turnout.trackers.mlflow import MlflowTracker

        class CrashError(BaseException):
            pass

        class Crashing(MlflowTracker):
            def numbers(self, numbers: Any) -> None:
                super().numbers(numbers)
                if numbers.step == 7:
                    self.save()  # sent, and not noted
                    raise CrashError

        api = PlayedApi(run_of("r1", state="stopped", reason="on request"), run_of("r2"))
        (tmp_path / "checkpoint" / "hf").mkdir(parents=True)
        (tmp_path / "checkpoint" / "hf" / "config.json").write_text("{}")
        api.folders["r1"] = tmp_path / "checkpoint"
        with pytest.raises(CrashError):
            exporter_of(api, Crashing, tmp_path / "x", run_ids=["r1"]).round()
        (tmp_path / "x" / "r1.json").unlink()  # and the note of the run's id was lost as well
        assert exporter_of(api, "mlflow", tmp_path / "x", artifacts="last").round()

        client = MlflowClient(server)
        experiment = client.get_experiment_by_name("project")
        assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
        by_id = {run.data.tags["turnout.run_id"]: run for run in client.search_runs([experiment.experiment_id])}
        assert sorted(by_id) == ["r1", "r2"]
        run = by_id["r1"]
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        assert sorted((name, item.step, item.value) for name in history for item in history[name]) == NUMBERS
        assert history["reward_mean"][0].timestamp == 1_002_000
        assert run.data.params == {
            "model.path": "m",
            "model.lora": "null",
            "training.steps": "12",
            "data.train": '["a", "b"]',
        }
        assert (run.info.run_name, run.info.status, run.info.end_time) == ("run r1", "KILLED", 1_100_000)
        assert by_id["r2"].info.status == "FINISHED"
        tags = run.data.tags
        assert (tags["turnout.state"], tags["turnout.reason"]) == ("stopped", "on request")
        assert "(https://turnout.example/#/runs/r1)" in tags["mlflow.note.content"]
        paths = [item["path"] for item in json.loads(tags["mlflow.loggedArtifacts"])]
        assert paths == ["samples/step-00000005-g5.json", "samples/step-00000010-g10.json"]
        files = {item.path for item in client.list_artifacts(run.info.run_id, "samples")}
        assert files == set(paths)
        [sent] = client.list_artifacts(run.info.run_id, f"checkpoints/step-{STEPS:08d}")
        assert sent.path.endswith("config.json")


class TestTrackio:
    def test_a_project_has_everything_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
        trackio = pytest.importorskip("trackio", reason="trackio fits no Pillow that vLLM takes")
        api = PlayedApi(run_of("r1", state="running", finished_at=None), run_of("r2"))
        first = exporter_of(api, "trackio", tmp_path / "x")
        first.round()
        first.close()
        second = exporter_of(api, "trackio", tmp_path / "x")
        assert second.round()
        second.close()
        from trackio.sqlite_storage import SQLiteStorage

        for run_id in ("r1", "r2"):
            rows = SQLiteStorage.get_logs("project", run=run_id)
            points = [
                (name, row["step"], value)
                for row in rows
                for name, value in row.items()
                if name not in ("step", "timestamp", "samples")
            ]
            assert sorted(points) == NUMBERS
            assert [row["step"] for row in rows if "samples" in row] == [5, 10]
            assert trackio.Api().runs("project")[0].config["turnout"]["run_id"] in ("r1", "r2")

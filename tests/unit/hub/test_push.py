"""`turnout runs push`, against a stand-in of the hub and into folders."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from services.contracts.errors import ConfigurationError, ConflictError, NotFoundError, UnavailableError
from services.contracts.records import Checkpoint, Evaluation, Run, Step
from services.runtime.address import free_port
from tests.unit.hub.stand_in import TOKEN, HubServer
from turnout.cli.main import app
from turnout.cli.views.card import wilson


class Api:
    """A client that knows one run."""

    def __init__(self, run: Run, checkpoints: list[Checkpoint]) -> None:
        self._run, self._checkpoints = run, checkpoints
        self.followed = 0

    def run(self, run_id: str) -> Run:
        return self._run

    def steps(self, run_id: str) -> list[Step]:
        return [Step(step=step, at=float(step), metrics={"reward_mean": step / 4}) for step in (1, 2, 3)]

    def evaluations(self, run_id: str) -> list[Evaluation]:
        numbers: dict[str, Any] = {"split": "validation", "num_questions": 100, "num_samples": 4, "at": 0.0}
        return [
            Evaluation(step=step, accuracy=accuracy, pass_at_k=0.75, **numbers)
            for step, accuracy in ((0, 0.25), (2, 0.5), (3, 0.625))
        ]

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        return self._checkpoints

    def follow(self, run_id: str) -> Iterator[Any]:
        self.followed += 1
        return iter([])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    (base / "LICENSE.txt").write_text("the terms")
    for step in (2, 3):
        folder = tmp_path / f"step-{step}" / "hf"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights %d" % step)
        (folder / "tokenizer.json").write_text("{}")
    return tmp_path


@pytest.fixture
def api(home: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    config = {
        "model": {"path": str(home / "base"), "dtype": "float32"},
        "data": {"train": [{"path": "hub:openai/gsm8k:train"}, "own.jsonl"], "validation": "v.jsonl"},
        "objective": {"name": "srpo"},
        "optimizer": {"learning_rate": 1e-6},
    }
    run = Run(id="r-1", name="a <b> run", state="succeeded", step=3, num_steps=3, objective="srpo", config=config)
    places = [(1, "gone"), (2, "step-2"), (3, "step-3")]
    written = [
        Checkpoint(step=step, at=0.0, path=str(home / name), bytes=1, seconds=0.1, exists=step > 1)
        for step, name in places
    ]
    made = Api(run, written)

    @contextmanager
    def client_of(api_url: str | None, given: str) -> Iterator[tuple[Api, str]]:
        yield made, given

    monkeypatch.setattr("turnout.client.run_ids.client_of", client_of)
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def push(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["runs", "push", "r-1", *arguments])


def fault(*arguments: str) -> Any:
    return push(*arguments).exception


def test_a_model_is_published_with_a_card_in_one_commit_and_again(hub: HubServer, api: Api, home: Path) -> None:
    result = push("ada/arithmetic", "--wait", "--base-model", "org/base", "--json")
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["place"] == f"{hub.url}/ada/arithmetic"
    assert (api.followed, hub.private["ada/arithmetic"]) == (1, True)
    files = hub.repositories["ada/arithmetic"]
    assert files["model.safetensors"] == b"weights 3"
    assert {"config.json", "tokenizer.json", "LICENSE.txt", "turnout/reward.png"} < files.keys()
    assert json.loads(files["turnout/configuration.json"])["optimizer"] == {"learning_rate": 1e-6}
    _, head, text = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["turnout", "reinforcement-learning", "srpo"],
        "turnout_run": "r-1",
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "license": "apache-2.0",
        "datasets": ["openai/gsm8k"],
    }
    assert "| validation | initial | 25.0% | 17.5% to 34.3% | 75.0% | 4 | 100 |" in text
    assert "| validation | step 3 | 62.5% | 52.7% to 71.4% | 75.0% | 4 | 100 |" in text
    assert "<b>" not in text
    assert TOKEN not in result.output

    files["model-00001-of-00002.safetensors"] = b"left over"
    again = push("ada/arithmetic", "--checkpoint", "2")
    assert again.exit_code == 0, again.exception
    assert files["model.safetensors"] == b"weights 2"
    assert "model-00001-of-00002.safetensors" not in files
    assert "step 2 | 50.0%" in files["README.md"].decode()
    assert hub.commits == ["Step 3 of a <b> run (r-1)", "Step 2 of a <b> run (r-1)"]


def test_a_repository_with_other_content_is_replaced_only_on_request(hub: HubServer, api: Api) -> None:
    hub.repositories["ada/old"] = {".gitattributes": b"x", "model.bin": b"precious"}
    refused = fault("ada/old")
    assert isinstance(refused, ConflictError)
    assert str(refused).startswith("ada/old has other content: model.bin.")
    assert hub.repositories["ada/old"]["model.bin"] == b"precious"
    assert push("ada/old", "--force").exit_code == 0
    assert "model.bin" not in hub.repositories["ada/old"]
    assert hub.repositories["ada/old"][".gitattributes"] == b"x"


def test_refusals_of_the_hub_are_sentences_without_the_token(
    hub: HubServer, api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    error = fault("others/model")
    assert isinstance(error, ConfigurationError)
    assert error.message == "The token may not write to others/model (403)."
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    error = fault("ada/new")
    assert isinstance(error, ConfigurationError)
    assert error.message == f"The hub at {hub.url} does not know the token (401)."
    assert "hf_wrong" not in str(error)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert isinstance(fault("ada/new"), UnavailableError)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    error = fault("ada/new")
    assert error.message == "There is no token for the hub."
    assert error.field == "HF_TOKEN"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ([], ConfigurationError, "Give either a repository"),
        (["ada/x", "--to-folder", "y"], ConfigurationError, "Give either a repository"),
        (["no-owner"], ConfigurationError, "which is not owner/name"),
        (["--to-folder", "out", "--checkpoint", "1"], NotFoundError, "no checkpoint of step 1 on disk; it has: 2, 3"),
        (["--to-folder", "out", "--merged"], ConfigurationError, "--merged is for runs with model.lora"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], kind: type, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    error = fault(*arguments)
    assert isinstance(error, kind)
    assert message in str(error)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_written_whole_and_nothing_is_overwritten(api: Api, home: Path) -> None:
    out = home / "deep" / "out"
    assert push("--to-folder", str(out)).exit_code == 0
    assert (out / "model.safetensors").read_bytes() == b"weights 3"
    assert (out / "README.md").read_text().startswith("---\n")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert isinstance(fault("--to-folder", str(out)), ConfigurationError)


def test_a_checkpoint_elsewhere_is_refused_with_a_remedy(api: Api, home: Path) -> None:
    (home / "step-3" / "hf").rename(home / "step-3" / "elsewhere")
    error = fault("--to-folder", str(home / "out"))
    assert isinstance(error, NotFoundError)
    assert "where the learner's home is" in error.remedy


def test_an_adapter_is_published_as_one_or_merged(api: Api, home: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder, base = home / "step-3" / "hf", home / "base"
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    (base / "config.json").write_text('{"model_type": "x"}')
    save_file({"l.weight": torch.ones(2, 2), "head": torch.zeros(2)}, base / "model.safetensors")
    names = {"base_model.model.l.lora_A.weight": (1, 2), "base_model.model.l.lora_B.weight": (2, 1)}
    save_file({name: torch.ones(shape) for name, shape in names.items()}, folder / "adapter_model.safetensors")
    values = {"lora_alpha": 3, "r": 1, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(values))

    assert push("--to-folder", str(home / "adapter"), "--base-model", "org/base").exit_code == 0
    assert json.loads((home / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    assert "library_name: peft" in (home / "adapter" / "README.md").read_text()

    result = push("--to-folder", str(home / "whole"), "--merged")
    assert result.exit_code == 0, result.exception
    tensors = load_file(home / "whole" / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "l.weight": [[4.0, 4.0], [4.0, 4.0]],
        "head": [0.0, 0.0],
    }
    names_there = {path.name for path in (home / "whole").iterdir()}
    assert {"config.json", "tokenizer.json", "LICENSE.txt"} < names_there
    assert not any(name.startswith("adapter") for name in names_there)
    assert "library_name: transformers" in (home / "whole" / "README.md").read_text()


def test_the_interval_is_wilsons() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Wilson (1927), tabulated
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 0) == (0.0, 1.0)

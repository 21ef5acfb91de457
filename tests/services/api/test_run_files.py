"""What the page's editor asks for: the inputs that runs may read, and the questions as the model will read them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from services.api.resources.run_files import questions
from services.runtime.settings import Settings
from services.runtime.tokenizer import load_tokenizer
from tests.conftest import ROOT

DEMO = (ROOT / "examples/runs/demo.yaml").read_text()


async def test_models_and_data_of_the_roots_are_named_as_run_files_name_them(
    client: httpx.AsyncClient, settings: Settings, tmp_path: Path
) -> None:
    for name in ("small", ".hidden", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    for name in ("small", ".hidden"):
        (tmp_path / name / "tokenizer.json").touch()
    (tmp_path / "rows.jsonl.gz").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "outside").symlink_to("/usr")
    (settings.home / "runs").mkdir(parents=True)
    (settings.home / "runs" / "samples.jsonl").touch()
    found = (await client.get("/v1/run-files/inputs")).json()
    assert found["is_whole"]
    assert found["models"] == [str(tmp_path / "small"), "examples/embedded/policy"]
    assert [name for name in found["data"] if name.startswith("/")] == [str(tmp_path / "rows.jsonl.gz")]
    assert "examples/embedded/data/train.jsonl" in found["data"]


async def test_the_first_questions_are_what_the_model_reads(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/run-files/questions", json={"text": DEMO, "rows": 1})
    found = reply.json()
    assert (found["problem"], found["note"]) == (None, "")
    assert [one["source"] for one in found["questions"]] == ["data.train", "data.validation"]
    tokenizer = load_tokenizer("examples/embedded/policy", trust_remote_code=False)
    for one in found["questions"]:
        ids = tokenizer.encode(one["text"], add_special_tokens=False)
        assert len(ids) == one["num_tokens"] > 0
        assert one["answer"]
        assert one["place"].endswith("line 1")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("train: examples/embedded/data/train.jsonl", "train: /etc/passwd", "data.train"),
        ("path: examples/embedded/policy", "path: nowhere", "model.path"),
        ("path: examples/embedded/policy", "path: owner/missing", "model.path"),  # and nothing is downloaded
        ("top_k: 100", "top_k: many", "objective.top_k"),
    ],
)
async def test_what_cannot_be_read_is_named(client: httpx.AsyncClient, old: str, new: str, field: str) -> None:
    reply = await client.post("/v1/run-files/questions", json={"text": DEMO.replace(old, new)})
    assert (reply.status_code, reply.json()["questions"]) == (200, [])
    assert reply.json()["problem"]["field"] == field


async def test_questions_that_take_too_long_are_given_up(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "SECONDS", 0.0)
    reply = await client.post("/v1/run-files/questions", json={"text": DEMO})
    assert (reply.status_code, "turnout data show" in reply.json()["remedy"]) == (503, True)

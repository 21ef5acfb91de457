"""`turnout data show`: what model and teacher read, and what is wrong with the questions together."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from tests.conftest import ROOT
from turnout.cli.main import app


def test_questions_are_shown_as_read_and_compared(tmp_path: Path) -> None:
    rows = [("coal 3 tonnes", "3"), ("iron", "2"), ("coal 3 tonnes", "3"), ("coal " * 40, "1")]
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    train.write_text("\n".join(json.dumps({"kind": "exact", "prompt": p, "answer": a}) for p, a in rows))
    validation.write_text(json.dumps({"kind": "exact", "prompt": "iron", "answer": "2"}))
    run = tmp_path / "run.yaml"
    run.write_text(
        f"name: x\nmodel: {{path: {ROOT / 'examples/embedded/policy'}}}\ntraining: {{steps: 1}}\n"
        f"data: {{train: {train}, validation: {validation}}}\nrollout: {{max_prompt_tokens: 20}}\n"
    )
    done = CliRunner().invoke(app, ["data", "show", str(run), "--rows", "1", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    first = found["rows"]["data.train"][0]
    assert first["place"] == f"{train}, line 1"
    assert "coal" in first["model"]
    assert "coal" in first["teacher"]
    assert len(first["teacher"]) > len(first["model"])
    facts = found["sources"]["data.train"]
    assert (facts["questions"], facts["duplicates"], facts["too_long"]) == (4, 1, 1)
    assert facts["first_duplicates"] == [[f"{train}, line 1", f"{train}, line 3"]]
    assert facts["first_too_long"] == [f"{train}, line 4"]
    assert found["in_training"] == [f"{validation}, line 1 is {train}, line 2"]
    text = CliRunner().invoke(app, ["data", "show", str(run)]).stdout
    assert "the teacher reads:" in text
    assert "1 duplicates, 1 too long" in text


def test_a_conversation_is_shown_whole_and_compared_whole(tmp_path: Path) -> None:
    def row(last: str, first: str = "coal 3 tonnes") -> str:
        turns = [("user", first), ("assistant", "iron"), ("user", last)]
        messages = [{"role": role, "content": content} for role, content in turns]
        return json.dumps({"kind": "exact", "answer": "3", "messages": messages})

    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    train.write_text("\n".join([row("wool"), row("wool", "iron"), row("wool")]))
    validation.write_text("\n".join([row("wool"), row("wool", "salt")]))
    run = tmp_path / "run.yaml"
    run.write_text(
        f"name: x\nmodel: {{path: {ROOT / 'examples/embedded/policy'}}}\ntraining: {{steps: 1}}\n"
        f"data: {{train: {train}, validation: {validation}}}\n"
    )
    found = json.loads(CliRunner().invoke(app, ["data", "show", str(run), "--json"]).stdout)
    first = found["rows"]["data.train"][0]
    for reader in ("model", "teacher"):
        places = [first[reader].find(word) for word in ("coal", "iron", "wool")]
        assert -1 < places[0] < places[1] < places[2]
    assert first["teacher"].startswith(first["model"][: first["model"].find("wool")])
    assert found["sources"]["data.train"]["first_duplicates"] == [[f"{train}, line 1", f"{train}, line 3"]]
    assert found["in_training"] == [f"{validation}, line 1 is {train}, line 3"]

    (template := tmp_path / "model").mkdir()
    for file in (ROOT / "examples/embedded/policy").iterdir():
        (template / file.name).write_bytes(file.read_bytes())
    (template / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    done = CliRunner().invoke(app, ["data", "show", str(run), "--set", f"model.path={template}"])
    assert done.exit_code != 0
    assert f"{train}, line 1: the model's chat template rejects the messages: roles must alternate" in str(
        done.exception
    )

"""The doctor: every finding has a status, problems come with a remedy, and the exit code reflects them."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import pytest

from turnout.cli.commands import doctor
from turnout.cli.exits import EXIT_FAILED, EXIT_OK


def test_this_machine_is_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.doctor(tmp_path / "home", 8400, True)
    answer = json.loads(capsys.readouterr().out)
    found = {finding["check"]: finding for finding in answer["findings"]}
    assert {"python", "compiler", "memory", "disk", "port", "torch", "valkey", "sandbox"} <= found.keys()
    assert found["python"]["status"] == "ok"
    assert "seccomp" in found["sandbox"]["text"]
    assert found["valkey"]["text"].lower().startswith(("valkey", "redis"))
    assert all(finding["remedy"] for finding in answer["findings"] if finding["status"] != "ok")
    assert code == (EXIT_OK if answer["ok"] else EXIT_FAILED)


def test_what_is_missing_fails_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TURNOUT_REDIS_URL", "redis://:secret@127.0.0.1:9/0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.doctor(tmp_path, 8400, False) == EXIT_FAILED
    out = capsys.readouterr().out
    assert "ok    compiler: none; not needed on a CPU" in out
    assert "FAIL  redis: redis://***@127.0.0.1:9/0 does not answer" in out
    assert "secret" not in out


@pytest.mark.parametrize("url", ["redis://me:se/cret@127.0.0.1:9/0", "redis://127.0.0.1:9/0?password=se/cret"])
def test_no_part_of_a_password_is_shown(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries quote what they take for the port of a URL that they cannot parse."""
    monkeypatch.setenv("TURNOUT_REDIS_URL", url)
    [finding] = doctor.check_queue_server(tmp_path)
    assert finding.status == "fail"
    assert "cret" not in repr(finding)
    assert "'se" not in repr(finding)


def test_a_full_disk_and_little_memory_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "GIB", 2**60)
    verdicts = {finding.check: finding.status for finding in [*doctor.check_disk(tmp_path), *doctor.check_memory()]}
    assert verdicts == {"disk": "fail", "memory": "fail"}


def test_a_missing_library_of_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    [failed] = [finding for finding in doctor.check_vllm() if finding.status == "fail"]
    assert "libnuma.so.1 is missing" in failed.text
    assert "apt install libnuma1" in failed.remedy

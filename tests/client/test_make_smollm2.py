"""The script that converts a packaged GGUF model to a Hugging Face folder, with the real package."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "make_smollm2.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_smollm2", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_package_holds_the_file(script: ModuleType) -> None:
    assert script.find_gguf().read_bytes()[:4] == b"GGUF"


def test_a_missing_package_is_told(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "find_spec", lambda _: None)
    with pytest.raises(script.MakeError, match="pip install"):
        script.find_gguf()


def test_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=True)
    assert "nothing to do" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_full_disk_is_told_before_anything_is_read(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "NEEDED_BYTES", 1 << 62)
    with pytest.raises(script.MakeError, match="GiB are free"):
        script.make(tmp_path / "model", "float32")
    assert not (tmp_path / "model").exists()

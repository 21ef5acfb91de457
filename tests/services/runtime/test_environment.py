from __future__ import annotations

import os

import pytest

from services.runtime.environment import fill_environment


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

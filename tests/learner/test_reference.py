"""The frozen initial model under ZeRO 0 to 3: it stays what it was, and a restart finds it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import free_port


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, list[list[float]]]]:
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "tests.learner.reference_program"]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    whole: dict[str, dict[str, list[list[float]]]] = json.loads(output.strip().splitlines()[-1])
    return whole


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_the_policy_departs_from_the_initial_model(found: dict[str, dict[str, list[list[float]]]], stage: str) -> None:
    divergences = [divergence for _, divergence in found[stage]["fresh"]]
    assert divergences[0] == pytest.approx(0.0, abs=1e-6)
    assert 0 < divergences[1] < divergences[2]
    for row, expected in zip(found[stage]["fresh"], found["0"]["fresh"], strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_after_a_restart_the_reference_is_still_the_initial_model(
    found: dict[str, dict[str, list[list[float]]]], stage: str
) -> None:
    assert found[stage]["resumed"][1] > 1e-3
    assert found[stage]["resumed"] == pytest.approx(found["0"]["resumed"], rel=1e-3, abs=1e-5)

"""Updates on a device that is not the CPU: no mix of devices, no waiting inside a micro-batch (`virtual_device`)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.services.learner.device_program import CASES
from tests.services.learner.engine_runs import run_ranks
from tests.services.learner.programs import Programs

NAMES = [*CASES, "padded rows", "checkpointing", "LoRA"]
MOST_WAITS = 9
"""In an update and the scores before it, whatever the number of micro-batches. docs/sizing.md names them."""
PADDED = ["aten::_local_scalar_dense at /transformers/masking_utils.py:find_packed_sequence_indices"]
"""What transformers asks in each pass of a model that cannot share prefixes."""


@pytest.fixture(scope="module")
def found(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("device") / "found.json"
    run_ranks(programs, "device", 1, [str(file)])
    read: dict[str, Any] = json.loads(file.read_text())
    return read


def test_the_device_refuses_and_counts_what_a_gpu_would(found: dict[str, Any]) -> None:
    controls = found["controls"]
    assert controls.pop("mixed").startswith("aten::add got tensors of both devices")
    assert controls == {"bool": 1, "float": 1, "mask": 1, "bincount": 1, "cpu": 1, "tolist": 1, "none": 0}


@pytest.mark.parametrize("case", NAMES)
def test_updates_on_the_device_are_those_on_the_cpu(found: dict[str, Any], case: str) -> None:
    """Up to rounding: torch has another attention kernel for devices that it does not know."""
    for there, plain in zip(found[case]["there"], found[case]["plain"], strict=True):
        assert there == pytest.approx(plain, rel=1e-3, abs=1e-4)
    assert found[case]["difference"] < 1e-4


@pytest.mark.parametrize("case", NAMES)
def test_nothing_waits_inside_a_microbatch_and_little_in_an_update(found: dict[str, Any], case: str) -> None:
    assert found[case]["inside"] == (PADDED if case == "padded rows" else [])
    assert sum(found[case]["waits"].values()) <= 2 * MOST_WAITS

"""The planner's forecast of the learner's memory, against what real updates of a small model allocate on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.services.learner.engine_runs import run_ranks
from tests.services.learner.programs import Programs

CASES: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "float32": {"dtype": "float32", "training": {"zero_stage": 0}},
    "without a teacher": {"dtype": "bfloat16", "objective": "grpo"},
    "checkpointing": {"dtype": "bfloat16", "training": {"gradient_checkpointing": True}},
    "checkpointing, few logits": {
        "dtype": "float32",
        "vocabulary": 256,
        "training": {"gradient_checkpointing": True, "zero_stage": 0},
    },
    "LoRA": {"dtype": "bfloat16", "lora": {"rank": 8}},
    "LoRA on 4 bits": {"dtype": "bfloat16", "lora": {"rank": 8, "load_in_4bit": True}},
    "ZeRO-3": {"dtype": "bfloat16", "training": {"zero_stage": 3}},
    "offloaded": {"dtype": "bfloat16", "training": {"zero_stage": 3, "offload_optimizer": True}},
    # Attention that kept a number per pair of tokens would need 36 MB more for the teacher alone.
    "long responses": {
        "dtype": "bfloat16",
        "layers": 2,
        "prompts": 1,
        "group": 2,
        "response": 1024,
        "training": {"gradient_checkpointing": True},
    },
    "small micro-batches": {"dtype": "bfloat16", "training": {"tokens_per_microbatch": 300}},
}


@pytest.fixture(scope="module")
def measured(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float]]:
    file = tmp_path_factory.mktemp("sizing") / "found.json"
    run_ranks(programs, "memory", 1, [str(file), json.dumps(list(CASES.values()))])
    return dict(zip(CASES, json.loads(Path(file).read_text()), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_forecast_is_within_a_tenth_of_what_passes_allocate(
    measured: dict[str, tuple[float, float]], case: str
) -> None:
    allocated, forecast = measured[case]
    assert forecast == pytest.approx(allocated, rel=0.1)

"""The peak memory that a step reports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from services.learner.model.memory import peak_bytes
from services.learner.program.commands import Step
from services.learner.program.session import TrainingSession
from tests.services.learner.objectives import builders
from tests.services.learner.objectives.builders import PlainEngine, random_sequences

HOLD_AND_FREE = """
import json, torch
from services.learner.model.memory import peak_bytes
cpu = torch.device("cpu")
peaks = [peak_bytes(cpu)]
held = torch.ones(64 * 2**20)
peaks.append(peak_bytes(cpu))
del held
print(json.dumps([*peaks, peak_bytes(cpu)]))
"""


def test_on_cpu_the_peak_is_resident_memory_and_stays_when_it_is_freed() -> None:
    done = subprocess.run([sys.executable, "-c", HOLD_AND_FREE], check=True, capture_output=True, text=True)
    before, held, freed = json.loads(done.stdout)
    assert 50e6 < before < 5e9
    # `before` may be above what was still held then.
    assert held - before == pytest.approx(256 * 2**20, rel=0.25)
    assert freed == pytest.approx(held, rel=0.02), "Linux counts pages by core"


def test_on_a_gpu_the_peak_is_what_torch_has_allocated_there(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated = {torch.device("cuda", 1): 7 * 2**30}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", allocated.__getitem__)
    assert peak_bytes(torch.device("cuda", 1)) == 7 * 2**30


def test_a_step_reports_the_rank_that_has_held_most() -> None:
    class WithLargerRank(PlainEngine):
        def all_reduce_max(self, values: torch.Tensor) -> torch.Tensor:
            return values.clamp(min=3.0e12) if values.max() > 1e6 else values

    session = TrainingSession.__new__(TrainingSession)
    session.engine, session.config, session.step = WithLargerRank(), builders.run_config(), 0  # type: ignore[assignment]
    session.engine.keeper = None
    assert session.train(Step([random_sequences(1, 4)], False)).peak_bytes == 3_000_000_000_000

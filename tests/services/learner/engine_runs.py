"""Results of `engine_program` for a number of ranks, a dtype and a kind of training, computed once for all tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.services.learner.programs import Programs

STAGES = (0, 1, 2, 3)
MIXED_STAGES = (1, 2, 3)
"""bfloat16 runs stage 0 as stage 1."""
OFFLOAD_STAGES = (2, 3)
"""Those with `training.offload_optimizer`."""


class EngineRuns:
    def __init__(self, programs: Programs, folders: pytest.TempPathFactory) -> None:
        self._programs = programs
        self._folders = folders
        self._made: dict[tuple[int, str, str], Path] = {}

    def folder(self, num_ranks: int, dtype: str = "float32", kind: str = "full") -> Path:
        """Files `stage<n>.pt` of the undisturbed training."""
        key = (num_ranks, dtype, kind)
        if key not in self._made:
            folder = self._folders.mktemp("engine")
            stages = OFFLOAD_STAGES if kind == "offload" else STAGES if dtype == "float32" else MIXED_STAGES
            self._run(num_ranks, ["train", str(folder), _listed(stages), dtype, kind])
            self._made[key] = folder
        return self._made[key]

    def result(self, num_ranks: int, stage: int, dtype: str = "float32", kind: str = "full") -> dict[str, Any]:
        return _load(self.folder(num_ranks, dtype, kind), stage)

    def resumed(
        self,
        source: tuple[int, int],
        num_ranks: int,
        stages: tuple[int, ...],
        dtype: str,
        kind: str,
        source_kind: str | None = None,
    ) -> dict[int, dict[str, Any]]:
        """By stage: the training that continues on `num_ranks` from what `source` (ranks, stage) left half-way, if
        `source_kind` is given of another kind."""
        folder = self._folders.mktemp("resumed")
        state = self.folder(source[0], dtype, source_kind or kind) / f"stage{source[1]}.pt"
        self._run(num_ranks, ["resume", str(folder), _listed(stages), dtype, kind, str(state)])
        return {stage: _load(folder, stage) for stage in stages}

    def _run(self, num_ranks: int, arguments: list[str]) -> None:
        run_ranks(self._programs, "engine", num_ranks, arguments)


def run_ranks(programs: Programs, module: str, num_ranks: int, arguments: list[str]) -> None:
    """Run one process per rank; all must succeed."""
    with programs.ranks(module, num_ranks, {}, arguments) as ranks:
        assert [process.wait() for process in ranks] == [0] * num_ranks


def _listed(stages: tuple[int, ...]) -> str:
    return ",".join(map(str, stages))


def _load(folder: Path, stage: int) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / f"stage{stage}.pt", weights_only=True)
    return loaded


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)

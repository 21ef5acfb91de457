"""How many threads a rank on a CPU computes with.

One if the model is small: sampling then takes as long as training, and the engine needs the other cores. Of a large
model, the learner is the slow side of the ring: a step of SmolLM2-135M trains for 90% of its time while the engine,
which has one thread, waits. The learner then gets all cores but one (`python -m benchmarks.learner_threads`), or all of
them if sampling and training take turns.
"""

from __future__ import annotations

import os

import torch

from services.runtime.cores import usable_cores

LARGE_PARAMETERS = 20_000_000
"""From here on the learner is taken for the slow side."""


def num_threads(parameters: int, cores: int, ranks: int, wanted: int, *, in_turns: bool) -> int:
    """Threads of each of `ranks` ranks on a machine; `wanted` is `TURNOUT_LEARNER_THREADS`, 0 to choose. `in_turns`:
    nothing but an evaluation is sampled during an update."""
    if wanted:
        return wanted
    return 1 if parameters < LARGE_PARAMETERS else max(1, (cores if in_turns else cores - 1) // ranks)


def use_threads(model: torch.nn.Module, wanted: int, *, in_turns: bool) -> None:
    """Set this rank's threads. Leaves them alone if `OMP_NUM_THREADS` says another number than services start with."""
    if not wanted and os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return
    # ZeRO-3 leaves parameters empty and keeps their sizes in `ds_numel`.
    parameters = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(num_threads(parameters, usable_cores(), ranks, wanted, in_turns=in_turns))

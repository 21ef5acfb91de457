"""Run by `test_reference`, one process: updates with a reference KL under each ZeRO stage, printed as JSON.

python -m tests.learner.reference_program
"""

from __future__ import annotations

import json
from typing import Any

from services.learner.ranks import join, leave, prepare_environment

prepare_environment()

import torch  # noqa: E402

from services.contracts.run_config import RunConfig, parse_run_config  # noqa: E402
from services.learner.engine import DeepSpeedEngine  # noqa: E402
from services.learner.minibatch import old_logprobs, run_minibatch, step_metrics  # noqa: E402
from tests.learner.engine_program import tiny_model  # noqa: E402
from tests.learner.objectives.builders import random_sequences  # noqa: E402


def config(stage: int) -> RunConfig:
    return parse_run_config(
        {
            "name": "reference",
            "model": {"path": "unused", "dtype": "float32"},
            "data": {"train": "unused"},
            "objective": {"name": "srpo", "reference_kl_coefficient": 0.2, "ratio": "sequence"},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
            "training": {"steps": 10, "zero_stage": stage},
        }
    )


def update(engine: Any, run: RunConfig, seed: int) -> tuple[float, float]:
    sequences = random_sequences(seed, 12)
    metrics = step_metrics([run_minibatch(engine, sequences, old_logprobs(engine, sequences, run), run)])
    return metrics["loss"], metrics["reference_kl_nats"]


def main() -> None:
    ranks, found = join(), {}
    for stage in (0, 1, 2, 3):
        run = config(stage)
        fresh = DeepSpeedEngine(run, tiny_model(), ranks)
        rows = [update(fresh, run, seed) for seed in range(3)]
        # As after a restart: the student comes from a checkpoint, the reference from the model that the run began with.
        trained = tiny_model()
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        found[stage] = {"fresh": rows, "resumed": update(DeepSpeedEngine(run, trained, ranks, tiny_model), run, 0)}
    print(json.dumps(found))
    leave()


if __name__ == "__main__":
    main()

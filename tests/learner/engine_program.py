"""Run by the engine tests, one process a rank: trains a tiny model under each ZeRO stage and saves what came out.

RANK=0 WORLD_SIZE=1 python -m tests.learner.engine_program <folder> <stages> <dtype>
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from services.learner.ranks import join, leave, prepare_environment

prepare_environment()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from services.contracts.run_config import RunConfig, parse_run_config  # noqa: E402

NUM_UPDATES = 3
VOCABULARY = 61


def run_config(stage: int, dtype: str) -> RunConfig:
    return parse_run_config(
        {
            "name": "engine",
            "model": {"path": "unused", "dtype": dtype},
            "data": {"train": "unused"},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "schedule": "cosine", "gradient_clip": 1.0},
            "training": {"steps": 10, "zero_stage": stage},
        }
    )


def tiny_model(dtype: str = "float32") -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    model.config.use_cache = False
    return model


def batches() -> Tensor:
    """[update, row, token]"""
    return torch.randint(0, VOCABULARY, (2 * NUM_UPDATES, 6, 10), generator=torch.Generator().manual_seed(1))


def row_loss(model: nn.Module, row: Tensor) -> Tensor:
    logits = model(input_ids=row[None]).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum") / 50


def train(engine: Any, updates: Tensor) -> list[float]:
    """Micro-batches of one row; each rank takes its rows."""
    norms = []
    for rows in updates:
        mine = rows[engine.rank :: engine.num_ranks]
        for index, row in enumerate(mine):
            engine.backward(row_loss(engine.student, row), last=index == len(mine) - 1)
        norms.append(engine.step())
        if engine.teacher is not None:
            with torch.no_grad():
                engine.teacher(input_ids=rows[:1])
    return norms


def main(folder: Path, stages: list[int], dtype: str) -> None:
    from services.learner.engine import DeepSpeedEngine
    from services.learner.optimizer_state import export_state, export_teacher, import_state, import_teacher
    from services.learner.weights import whole_weights

    ranks = join()
    data = batches()
    for stage in stages:
        engine = DeepSpeedEngine(run_config(stage, dtype), tiny_model(dtype), ranks)
        norms = train(engine, data[:NUM_UPDATES])
        weights = whole_weights(engine.module, 0)
        state, teacher = export_state(engine), export_teacher(engine)
        # Rank 0 has the whole state; the others read it as they would from a checkpoint.
        holder = [state, teacher]
        torch.distributed.broadcast_object_list(holder)
        resumed_model = tiny_model(dtype)
        resumed_model.load_state_dict(weights, strict=False)
        resumed = DeepSpeedEngine(run_config(stage, dtype), resumed_model, ranks)
        import_state(resumed, holder[0], NUM_UPDATES)
        import_teacher(resumed, holder[1])
        norms += train(engine, data[NUM_UPDATES:])
        train(resumed, data[NUM_UPDATES:])
        result = {
            "norms": norms,
            "weights": weights,
            "state": state,
            "teacher": teacher,
            "later": whole_weights(engine.module, 0),
            "later_teacher": export_teacher(engine),
            "resumed": whole_weights(resumed.module, 0),
            "resumed_teacher": export_teacher(resumed),
        }
        with torch.no_grad():
            teacher_model = engine.teacher
            result["teacher_logits"] = teacher_model(input_ids=data[0, :1]).logits
        if ranks.rank == 0:
            torch.save(result, folder / f"stage{stage}.pt")
    leave()


def run_from(arguments: list[str]) -> None:
    folder, stages, dtype = arguments
    main(Path(folder), [int(stage) for stage in stages.split(",")], dtype)


if __name__ == "__main__":
    run_from(sys.argv[1:])

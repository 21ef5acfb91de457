"""Run by the engine tests, one process per rank: trains a tiny model under each ZeRO stage and saves the results.

RANK=0 WORLD_SIZE=1 python -m tests.services.learner.engine_program train <folder> <stages> <dtype> <full|lora|offload>
RANK=0 WORLD_SIZE=1 python -m tests.services.learner.engine_program resume <folder> <stages> <dtype> \\
  <full|lora|offload> <state file>
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from services.learner.model.ranks import join, leave, prepare_environment

prepare_environment()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from services.contracts.run_config import RunConfig, parse_run_config  # noqa: E402

NUM_UPDATES = 3
VOCABULARY = 61


def run_config(stage: int, dtype: str, kind: str = "full", tokens_per_microbatch: int = 4096) -> RunConfig:
    lora = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]} if kind == "lora" else None
    return parse_run_config(
        {
            "name": "engine",
            "model": {"path": "unused", "dtype": dtype, "lora": lora},
            "data": {"train": "unused"},
            "objective": {"reference_kl_coefficient": 0.1 if lora else 0.0},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "schedule": "cosine", "gradient_clip": 1.0},
            "training": {
                "steps": 10,
                "zero_stage": stage,
                "tokens_per_microbatch": tokens_per_microbatch,
                "offload_optimizer": kind == "offload",
            },
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


def trained_model(config: RunConfig) -> nn.Module:
    """The tiny model as the run trains it: itself, or with an adapter that is the same each time."""
    from services.learner.model.lora import inject

    model = tiny_model(config.model.dtype)
    return model if config.model.lora is None else inject(model, config.model)


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


def train_minibatches(ranks: Any, config: RunConfig, *, share: bool) -> dict[str, Any]:
    """One step of SRPO in two updates, on all ranks together: losses and the weights afterwards."""
    from services.learner.model.engine import DeepSpeedEngine
    from services.learner.model.export import whole_weights
    from services.learner.model.tree_attention import share_prefixes, shares_prefixes
    from services.learner.packing.shares import share_of_rank
    from services.learner.update.scoring import old_logprobs
    from services.learner.update.update import run_minibatch
    from tests.services.learner.objectives.builders import random_sequences

    model = trained_model(config)
    if share:
        assert share_prefixes(model)
    engine = DeepSpeedEngine(config, model, ranks)
    assert shares_prefixes(engine.student) == share
    halves = [random_sequences(seed, 12) for seed in (1, 2)]
    mine = [[half[index] for index in share_of_rank(half, ranks.rank, ranks.num_ranks)] for half in halves]
    later = old_logprobs(engine, mine[1], config)
    reports = [run_minibatch(engine, mine[0], None, config), run_minibatch(engine, mine[1], later, config)]
    return {
        "losses": [report.loss for report in reports],
        "weights": whole_weights(engine.module, 0, trained_only=True),
    }


def main(folder: Path, stages: list[int], dtype: str, kind: str) -> None:
    from services.learner.model.engine import DeepSpeedEngine
    from services.learner.model.export import whole_weights
    from services.learner.model.optimizer_state import export_state, export_teacher

    ranks = join()
    data = batches()
    for stage in stages:
        config = run_config(stage, dtype, kind)
        engine = DeepSpeedEngine(config, trained_model(config), ranks)
        norms = train(engine, data[:NUM_UPDATES])
        weights = whole_weights(engine.module, 0, trained_only=True)
        state, teacher = export_state(engine), export_teacher(engine)
        resumed = resume(config, ranks, {"weights": weights, "state": state, "teacher": teacher})
        norms += train(engine, data[NUM_UPDATES:])
        train(resumed, data[NUM_UPDATES:])
        result = {
            "norms": norms,
            "weights": weights,
            "state": state,
            "teacher": teacher,
            **later(engine),
            **{f"resumed_{name}": value for name, value in later(resumed).items()},
            **{f"refused_{name}": value for name, value in after_bad_gradients(resumed, data[0]).items()},
        }
        with torch.no_grad():
            for name in ("student", "teacher", "reference"):
                model = getattr(engine, name)
                result[f"{name}_logits"] = None if model is None else model(input_ids=data[0, :1]).logits
        small = run_config(stage, dtype, kind, tokens_per_microbatch=40)
        for name, share in (("single", False), ("shared", True)):
            result[name] = train_minibatches(ranks, small, share=share)
        if ranks.rank == 0:
            torch.save(result, folder / f"stage{stage}.pt")
    leave()


def after_bad_gradients(engine: Any, rows: Tensor) -> dict[str, Any]:
    """`later` after an update whose gradients are NaN on one rank, though the loss is finite."""
    from services.learner.model.engine import NumericalError

    loss = row_loss(engine.student, rows[0])
    if engine.rank == engine.num_ranks - 1:
        loss.register_hook(lambda gradient: gradient * float("nan"))
    engine.backward(loss, last=True)
    try:
        engine.step()
    except NumericalError:
        return later(engine)
    return {}


def later(engine: Any) -> dict[str, Any]:
    from services.learner.model.export import whole_weights
    from services.learner.model.optimizer_state import export_state, export_teacher

    return {
        "later": whole_weights(engine.module, 0, trained_only=True),
        "later_state": export_state(engine),
        "later_teacher": export_teacher(engine),
    }


def resume(config: RunConfig, ranks: Any, saved: dict[str, Any]) -> Any:
    """An engine that continues from rank 0's `saved`, which the other ranks get as they would from a checkpoint."""
    from services.learner.model.engine import DeepSpeedEngine
    from services.learner.model.optimizer_state import import_state, import_teacher

    holder = [saved["weights"], saved["state"], saved["teacher"]]
    torch.distributed.broadcast_object_list(holder)
    model = trained_model(config)
    model.load_state_dict(holder[0], strict=False)
    engine = DeepSpeedEngine(config, model, ranks)
    import_state(engine, holder[1], NUM_UPDATES)
    import_teacher(engine, holder[2])
    return engine


def go_on(folder: Path, stages: list[int], dtype: str, kind: str, source: Path) -> None:
    """Continue from a state that another number of ranks or another stage may have written."""
    ranks = join()
    saved = torch.load(source, weights_only=True)
    for stage in stages:
        engine = resume(run_config(stage, dtype, kind), ranks, saved)
        taken = {name.replace("later", "taken"): value for name, value in later(engine).items()}
        train(engine, batches()[NUM_UPDATES:])
        result = later(engine) | taken
        if ranks.rank == 0:
            torch.save(result, folder / f"stage{stage}.pt")
    leave()


def run_from(arguments: list[str]) -> None:
    what, folder, stages, dtype, kind, *source = arguments
    numbers = [int(stage) for stage in stages.split(",")]
    if what == "resume":
        go_on(Path(folder), numbers, dtype, kind, Path(source[0]))
    else:
        main(Path(folder), numbers, dtype, kind)


if __name__ == "__main__":
    run_from(sys.argv[1:])

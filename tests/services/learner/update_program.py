"""Run by `test_updates`, one process per rank: whole optimizer updates of mini-batches on real engines.

updates <file> <cases>            each case (see `CASES`) under ZeRO 0 to 3: numbers, final weights
step <file> <model> <stage>       one training step of two mini-batches by `TrainingSession`
teacher <file>                    the self-teacher after each update, by `teacher_update`
fixed <folder>                    a run with a teacher of its own, interrupted and resumed by `TrainingSession`
quantized <folder> <dtype> <stage>  a run with a base model in 4 bits, the same way
small <file> <stages>             many updates that are far below bfloat16's precision
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.learner.model.ranks import join, leave, prepare_environment

prepare_environment()

import torch  # noqa: E402

from services.contracts.errors import ConfigurationError  # noqa: E402
from services.contracts.run_config import RunConfig, parse_run_config  # noqa: E402
from services.learner.checkpoint import CheckpointStore, Loaded, load  # noqa: E402
from services.learner.model.engine import DeepSpeedEngine  # noqa: E402
from services.learner.model.export import whole_weights, write_safetensors  # noqa: E402
from services.learner.model.lora import inject  # noqa: E402
from services.learner.model.optimizer_state import export_state, export_teacher  # noqa: E402
from services.learner.model.parking import Parking, storages, tensors  # noqa: E402
from services.learner.packing.sequence import TrainSequence  # noqa: E402
from services.learner.program.commands import Step  # noqa: E402
from services.learner.program.session import TrainingSession  # noqa: E402
from services.learner.update.scoring import old_logprobs  # noqa: E402
from services.learner.update.statistics import step_metrics  # noqa: E402
from services.learner.update.update import run_minibatch  # noqa: E402
from tests.services.learner.engine_program import VOCABULARY, batches, row_loss, tiny_model  # noqa: E402
from tests.services.learner.engine_runs import named  # noqa: E402
from tests.services.learner.objectives import builders  # noqa: E402
from tests.services.learner.objectives.builders import large_teacher, random_sequences  # noqa: E402

STAGES = (0, 1, 2, 3)
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 4, "alpha": 8}},
    "checkpointing": {"gradient_checkpointing": True},
    "offload": {"offload_teacher": True},
    "restarted": {},
    "fixed": {"offload_teacher": True, "objective": {"teacher_path": "unused", "teacher_update": "frozen"}},
}
SMALL_RATE = 2e-6
SMALL_UPDATES = 60


def stages_of(case: str) -> tuple[int, ...]:
    """Memory options and a restart depend on whether ZeRO partitions the weights, and on nothing else."""
    return STAGES if case in ("full", "lora") else (1, 3)


def config(stage: int, case: str) -> RunConfig:
    special = dict(CASES[case])
    return parse_run_config(
        {
            "name": "updates",
            "model": {"path": "unused", "dtype": "float32", "lora": special.pop("lora", None)},
            "data": {"train": "unused"},
            "objective": {
                "name": "srpo",
                "reference_kl_coefficient": 0.2,
                "ratio": "sequence",
                "top_k": 5,
                **special.pop("objective", {}),
            },
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0, "epsilon": 1e-2},
            "training": {"steps": 10, "zero_stage": stage, "tokens_per_microbatch": 64, **special},
        }
    )


def engine_for(run: RunConfig, case: str, ranks: Any) -> DeepSpeedEngine:
    model = tiny_model()
    if run.model.lora is not None:
        return DeepSpeedEngine(run, inject(model, run.model), ranks)
    if case == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        model.train()
    if case == "restarted":
        # As after a restart: the student comes from a checkpoint, the reference from the run's initial model.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        return DeepSpeedEngine(run, model, ranks, tiny_model)
    if case == "fixed":
        return DeepSpeedEngine(run, model, ranks, None, large_teacher(vocabulary=VOCABULARY))
    return DeepSpeedEngine(run, model, ranks)


def mine(sequences: list[TrainSequence], engine: DeepSpeedEngine) -> list[TrainSequence]:
    """With two ranks, one has all rollouts routed to SDPO and the other has none."""
    if engine.num_ranks == 1:
        return sequences
    return [item for item in sequences if (item.route == "sdpo") == (engine.rank == 1)]


def away_and_back(engine: DeepSpeedEngine) -> None:
    """As between two turns on a shared GPU: no state has memory meanwhile."""
    names = {name for name, parameter in engine.module.named_parameters() if parameter.numel()}
    parking, cpu = Parking(engine, engine.device), torch.device("cpu")
    parking.park()
    left = [tensor for tensor in tensors(engine) if tensor.untyped_storage().nbytes()]
    assert not list(storages(engine, cpu)), f"{len(left)} tensors still have memory"
    held = {name for name, value in engine.module.named_parameters() if value.untyped_storage().nbytes()}
    assert not names & held, held
    parking.unpark()


def held_teacher(engine: DeepSpeedEngine) -> dict[str, Any]:
    assert engine.teacher is not None
    return export_teacher(engine) if engine.ema is not None else whole_weights(engine.teacher, engine.rank)


def updates(file: Path, cases: list[str]) -> None:
    ranks, found = join(), {}
    for case in cases:
        for stage in stages_of(case):
            run = config(stage, case)
            engine = engine_for(run, case, ranks)
            rows = []
            for seed in range(3):
                sequences = mine(random_sequences(seed, 12), engine)
                report = run_minibatch(engine, sequences, old_logprobs(engine, sequences, run), run)
                metrics = step_metrics([report])
                rows.append([metrics[name] for name in ("loss", "reference_kl_nats", "teacher_entropy_nats")])
                if ranks.num_ranks == 1:
                    away_and_back(engine)
            found[f"{case}-{stage}"] = {
                "rows": rows,
                "weights": whole_weights(engine.module, 0, trained_only=True),
                "teacher": held_teacher(engine),
            }
    if ranks.rank == 0:
        torch.save(found, file)
    leave()


def step(file: Path, model: str, stage: int) -> None:
    ranks = join()
    run = step_config(model, stage)
    session = TrainingSession(run, ranks, None, allow_remote_code=False)
    reports = session.train(Step(step_minibatches(), False)).reports
    weights, teacher = session.weights(), export_teacher(session.engine)
    if ranks.rank == 0:
        torch.save({"weights": weights, "teacher": teacher, "losses": [report.loss for report in reports]}, file)
    leave()


def step_config(model: str, stage: int) -> RunConfig:
    return parse_run_config(
        {
            "name": "step",
            "model": {"path": model, "dtype": "float32"},
            "data": {"train": "unused"},
            "objective": {"name": "srpo", "top_k": 5},
            # A large epsilon, since AdamW's first update would otherwise be a sign, which rounding can flip.
            "optimizer": {"learning_rate": 1.0, "warmup_steps": 0, "epsilon": 1.0, "gradient_clip": 1e9},
            "training": {"steps": 1, "prompts_per_step": 2, "prompts_per_minibatch": 1, "zero_stage": stage},
        }
    )


def step_minibatches() -> list[list[TrainSequence]]:
    return [random_sequences(seed, 10) for seed in (21, 22)]


def teacher(file: Path) -> None:
    """Six updates, two per step, by `teacher_update`: student and teacher after each. `resumed` begins after step 3."""
    ranks, found = join(), {}
    for case in ("ema", "frozen", "every", "resumed", "gated"):
        for stage in (0, 3):
            run = parse_run_config(
                {
                    "name": "teacher",
                    "model": {"path": "unused", "dtype": "float32"},
                    "data": {"train": "unused"},
                    "objective": {"teacher_update": "every", "teacher_every_steps": 2}
                    if case in ("every", "resumed")
                    else {"teacher_update": case},
                    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
                    "training": {"steps": 3, "prompts_per_step": 2, "prompts_per_minibatch": 1, "zero_stage": stage},
                }
            )
            engine = DeepSpeedEngine(run, tiny_model(), ranks)
            if case == "resumed":
                engine.updates, engine.begun = 7, (3, 7)  # a fork: the parent had other mini-batches
            rows = []
            for number in range(6):
                if case == "gated" and number == 4:
                    engine.renew_teacher()
                engine.backward(row_loss(engine.student, batches()[0, 0]), last=True)
                engine.step()
                rows.append({"student": whole_weights(engine.module, 0), "teacher": export_teacher(engine)})
            found[f"{case}-{stage}"] = rows
    if ranks.rank == 0:
        torch.save(found, file)
    leave()


def fixed(folder: Path) -> None:
    ranks = join()
    builders.tiny_model(7).save_pretrained(folder / "policy")
    large_teacher().save_pretrained(folder / "teacher")
    values = step_config(str(folder / "policy"), 1).model_dump(mode="json")
    own = {"teacher_path": str(folder / "teacher"), "teacher_update": "frozen"}
    values = values | {"objective": values["objective"] | own, "training": values["training"] | {"steps": 3}}
    run = parse_run_config(values)

    def session(config: RunConfig, checkpoint: Loaded | None) -> TrainingSession:
        return TrainingSession(config, ranks, checkpoint, allow_remote_code=False)

    def save(place: Path, weights: Any) -> None:
        whole.engine.module.config.save_pretrained(place)  # type: ignore[operator, union-attr]
        write_safetensors(place, "model", weights)

    whole = session(run, None)
    whole.train(Step(step_minibatches(), False))
    checkpoint, _ = CheckpointStore(folder, save).write(whole.snapshot("run", {}, whole.weights()))
    whole.train(Step(step_minibatches(), False))
    resumed = session(run, load(checkpoint))
    resumed.train(Step(step_minibatches(), False))
    found = {"whole": whole.weights(), "resumed": resumed.weights()}
    files = sorted(path.name for path in (checkpoint / "state").iterdir())
    large_teacher().save_pretrained(folder / "moved")
    moved = parse_run_config(
        values | {"objective": run.objective.model_dump() | {"teacher_path": str(folder / "moved")}}
    )
    session(moved, load(checkpoint))
    other = large_teacher()
    other.lm_head.weight[0, 0] += 1e-3
    other.save_pretrained(folder / "teacher")
    try:
        session(run, load(checkpoint))
        refusal = ""
    except ConfigurationError as error:
        refusal = f"{error.field}: {error}"
    torch.save(found | {"files": files, "refusal": refusal}, folder / "found.pt")
    leave()


def quantized(folder: Path, dtype: str, stage: int) -> None:
    """A step, a checkpoint, another step; the same from the checkpoint; and what continues from it no more."""
    ranks = join()
    policy = folder / "policy"
    if ranks.rank == 0:
        quantizable().save_pretrained(policy)
    torch.distributed.barrier()
    values = step_config(str(policy), stage).model_dump(mode="json")
    lora = {"rank": 4, "alpha": 8, "load_in_4bit": True}
    values["model"] |= {"dtype": dtype, "lora": lora}
    values["objective"] |= {"reference_kl_coefficient": 0.1}
    values["optimizer"] |= {"learning_rate": 1e-2, "epsilon": 1e-8}
    run = parse_run_config(values | {"training": values["training"] | {"steps": 3}})

    def session(config: RunConfig, checkpoint: Loaded | None) -> TrainingSession:
        return TrainingSession(config, ranks, checkpoint, allow_remote_code=False)

    whole = session(run, None)
    first = whole.weights()
    whole.train(Step(step_minibatches(), False))
    snapshot = whole.snapshot("run", {}, whole.weights())
    store = CheckpointStore(folder, lambda place, weights: whole.save_model(place, weights, NoTokenizer()))
    if ranks.rank == 0:
        store.write(snapshot)
    torch.distributed.barrier()
    row = batches()[0, :1] % builders.VOCABULARY
    with torch.no_grad():
        logits = whole.engine.student(input_ids=row).logits
    whole.train(Step(step_minibatches(), False))
    resumed = session(run, load(store.path(1)))
    restored = {"state": export_state(resumed.engine), "teacher": export_teacher(resumed.engine)}
    resumed.train(Step(step_minibatches(), False))
    scales = [value.quant_state.absmax for value in resumed.engine.module.parameters() if hasattr(value, "quant_state")]
    reached = {id(value) for value in tensors(resumed.engine)}
    assert scales, "nothing is in 4 bits"
    assert all(id(value) in reached for value in scales), "scales would stay on a GPU that is shared in turns"
    found = {
        "dequantized": dequantized(quantizable().to(getattr(torch, dtype))),
        "first": first,
        "row": row,
        "logits": logits,
        "checkpoint": dict(snapshot.weights),
        "saved": {"state": dict(snapshot.optimizer), "teacher": dict(snapshot.teacher)},
        "restored": restored,
        "whole": whole.weights() | export_state(whole.engine) | export_teacher(whole.engine),
        "resumed": resumed.weights() | export_state(resumed.engine) | export_teacher(resumed.engine),
    }
    if ranks.rank == 0:
        plain = parse_run_config(values | {"model": values["model"] | {"lora": lora | {"load_in_4bit": False}}})
        found["refusals"] = [refusal(lambda: session(plain, load(store.path(1))))]
        other = quantizable()
        other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
        other.save_pretrained(policy)
        found["refusals"].append(refusal(lambda: session(run, load(store.path(1)))))
        torch.save(found, folder / "found.pt")
    leave()


def dequantized(model: Any) -> dict[str, torch.Tensor]:
    """Weights as NF4 with quantized scales represents them, of the linear layers; all others as they are."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    options: Any = {"quant_type": "nf4", "compress_statistics": True}
    weights = {}
    for name, value in named(model).items():
        linear = name.endswith("proj.weight")
        weights[name] = dequantize_4bit(*quantize_4bit(value, **options)) if linear else value
    return weights


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        """The tests' model has none."""


def refusal(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except ConfigurationError as error:
        return f"{error.field}: {error}"
    return ""


@torch.no_grad()
def quantizable() -> Any:
    """A model whose layers have several blocks of scales, and a bias that stays as it is."""
    config = builders.tiny_model(7).config
    config.update({"hidden_size": 64, "intermediate_size": 192, "head_dim": 32, "attention_bias": True})
    torch.manual_seed(3)
    model = type(builders.tiny_model(7))(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    return model


def small(file: Path, stages: list[int]) -> None:
    ranks, found = join(), {}
    for stage in stages:
        run = parse_run_config(
            {
                "name": "small",
                "model": {"path": "unused", "dtype": "bfloat16"},
                "data": {"train": "unused"},
                "objective": {"name": "grpo"},
                "optimizer": {"learning_rate": SMALL_RATE, "warmup_steps": 0, "weight_decay": 0.0},
                "training": {"steps": 1000, "zero_stage": stage},
            }
        )
        engine = DeepSpeedEngine(run, tiny_model("bfloat16"), ranks)
        for _ in range(SMALL_UPDATES):
            engine.backward(row_loss(engine.student, batches()[0, 0]), last=True)
            engine.step()
        found[stage] = {"weights": whole_weights(engine.module, 0), "state": export_state(engine)}
    if ranks.rank == 0:
        torch.save(found, file)
    leave()


def run_from(arguments: list[str]) -> None:
    what, file, *rest = arguments
    if what == "updates":
        updates(Path(file), rest[0].split(","))
    elif what == "step":
        step(Path(file), rest[0], int(rest[1]))
    elif what == "fixed":
        fixed(Path(file))
    elif what == "quantized":
        quantized(Path(file), rest[0], int(rest[1]))
    elif what == "teacher":
        teacher(Path(file))
    else:
        small(Path(file), [int(stage) for stage in rest[0].split(",")])

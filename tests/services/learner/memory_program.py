"""Run by `test_sizing`, one process: what the learner allocates in passes of one update of a small model.

<file> <cases as JSON>      writes [[allocated, formula], ...]
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from services.learner.model.ranks import join, leave, prepare_environment

prepare_environment()

import torch  # noqa: E402

from services.contracts import sizing  # noqa: E402
from services.contracts.run_config import RunConfig, parse_run_config  # noqa: E402
from services.learner.model.engine import DeepSpeedEngine  # noqa: E402
from services.learner.model.export import load_model  # noqa: E402
from services.learner.model.lora import inject  # noqa: E402
from services.learner.model.tree_attention import share_prefixes  # noqa: E402
from services.learner.packing.sequence import TrainSequence  # noqa: E402
from services.learner.proof.allocated import Allocated  # noqa: E402
from services.learner.update.update import run_minibatch  # noqa: E402

PROMPT, RESPONSE, GROUP = 64, 192, 4


def configuration(case: dict[str, Any]) -> RunConfig:
    """Groups whose responses all have full length, so that bounds are values."""
    response, prompts = case.get("response", RESPONSE), case.get("prompts", 2)
    training = {"steps": 1, "prompts_per_step": prompts, "tokens_per_microbatch": PROMPT + GROUP * RESPONSE}
    return parse_run_config(
        {
            "name": "memory",
            "model": {"path": "unused", "dtype": case["dtype"], "lora": case.get("lora")},
            "data": {"train": "unused"},
            "objective": {"name": case.get("objective", "srpo")},
            "rollout": {
                "group_size": case.get("group", GROUP),
                "max_prompt_tokens": PROMPT,
                "max_response_tokens": response,
            },
            "training": training | case.get("training", {}),
        }
    )


def small_model(case: dict[str, Any], config: RunConfig) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=case.get("vocabulary", 2048),
        hidden_size=128,
        intermediate_size=case.get("middle", 384),
        num_hidden_layers=case.get("layers", 8),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(shape).to(getattr(torch, config.model.dtype))
    model.config.use_cache = False
    assert share_prefixes(model)
    if config.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    if case.get("lora", {}).get("load_in_4bit"):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = config.training.gradient_checkpointing
            model = load_model(
                config.model, folder, gradient_checkpointing=again, allow_remote_code=False, quantize=True
            )
    return model if config.model.lora is None else inject(model, config.model)


def sequences(config: RunConfig, vocabulary: int) -> list[TrainSequence]:
    made, length = [], config.rollout.max_response_tokens
    taught = config.objective.name == "srpo"  # all of them: then bounds are values
    for group in range(config.training.prompts_per_step):
        prompt = [(7 * group + place) % vocabulary for place in range(PROMPT)]
        for member in range(config.rollout.group_size):
            response = [(11 * group + 13 * member + place + 1) % vocabulary for place in range(length)]
            teacher = prompt + [3] * length if taught else None
            route: Any = "sdpo" if teacher else "grpo"
            made.append(TrainSequence(prompt, response, [-1.0] * length, 0.5, route, teacher))
    return made


def measure(case: dict[str, Any], ranks: Any) -> list[float]:
    config = configuration(case)
    model = small_model(case, config)
    shape = sizing.shape_of(model.config.to_dict(), "small")
    with Allocated() as allocated:
        allocated.hold([*model.parameters(), *model.state_dict().values()])
        engine = DeepSpeedEngine(config, model, ranks)
        peaks: list[int] = []
        whole = engine.step

        def step() -> float:
            peaks.append(allocated.peak)
            return whole()

        engine.step = step  # type: ignore[method-assign]
        rows = sequences(config, shape.vocabulary)
        for _ in range(2):  # AdamW's moments exist from the first step on
            allocated.restart()
            run_minibatch(engine, rows, None, config)
    found, plain = sizing.learner(config, shape), training_with(config, offload_optimizer=False)
    in_cpu_memory = found.cpu - sizing.learner(plain, shape).cpu  # the same memory, here
    return [peaks[1], found.total + in_cpu_memory]


def training_with(config: RunConfig, **changes: Any) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def run_from(arguments: list[str]) -> None:
    file, cases = arguments
    ranks = join()
    Path(file).write_text(json.dumps([measure(case, ranks) for case in json.loads(cases)]))
    leave()

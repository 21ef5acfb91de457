"""Plans: sizes by formula, settings that fit a number of GPUs, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.contracts import planner, sizing
from services.contracts.errors import ConfigurationError
from services.contracts.planner import Gpus
from services.contracts.run_config import RunConfig, parse_run_config
from services.contracts.sizing import GIB
from turnout.cli.main import app
from turnout.cli.views.plan import sentences

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28},
    "qwen3-8b": {"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36},
}
SHAPES["qwen3-0.6b"] |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
SHAPES["qwen3-8b"] |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
SHAPES["qwen3-0.6b"]["tie_word_embeddings"] = True
LORA: tuple[dict[str, Any], ...] = ({}, {"lora": {}})


def folder_of(folder: Path, name: str = "qwen3-8b", **other: Any) -> str:
    (folder / "config.json").write_text(json.dumps(SHAPES[name] | other))
    return str(folder)


def run(path: str, **sections: dict[str, Any]) -> RunConfig:
    model = {"path": path} | sections.pop("model", {})
    training = {"steps": 1} | sections.pop("training", {})
    return parse_run_config({"name": "p", "model": model, "data": {"train": "t"}, "training": training, **sections})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (SHAPES["qwen3-0.6b"], 596_049_920),
        (SHAPES["qwen3-8b"], 8_190_735_360),
        (
            {
                "model_type": "qwen2",
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
                "tie_word_embeddings": True,
            },
            494_032_768,
        ),
        (
            {
                "model_type": "llama",
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "vocab_size": 49152,
                "tie_word_embeddings": True,
            },
            134_515_008,
        ),
    ],
    ids=["Qwen3-0.6B", "Qwen3-8B", "Qwen2.5-0.5B", "SmolLM2-135M"],
)
def test_parameters_are_counted_as_the_models_cards_say(values: dict[str, Any], expected: int) -> None:
    assert sizing.shape_of(values, "m").num_parameters == expected


@pytest.mark.parametrize(
    ("training", "bytes_per_parameter"),
    [
        ({}, 26),
        ({"num_ranks": 8}, 15.5),
        ({"num_ranks": 4, "zero_stage": 2}, 12),
        ({"num_ranks": 8, "zero_stage": 3}, 3),
    ],
)
def test_states_are_those_of_the_page_on_sizing(
    tmp_path: Path, training: dict[str, Any], bytes_per_parameter: float
) -> None:
    found = sizing.learner(run(folder_of(tmp_path), training=training), sizing.read_shape(str(tmp_path)))
    state = found.weights + found.optimizer + found.gradients + found.teacher
    assert state / 8_190_735_360 == pytest.approx(bytes_per_parameter)


def test_another_model_as_the_teacher_is_counted(tmp_path: Path) -> None:
    """Its weights in model.dtype, without averages; with an adapter too."""
    for name in ("policy", "teacher"):
        (tmp_path / name).mkdir()
    own = folder_of(tmp_path / "policy", "qwen3-0.6b")
    fixed = {"teacher_path": folder_of(tmp_path / "teacher"), "teacher_update": "frozen"}
    plans = [planner.plan(run(own, objective=objective, model=model)) for objective in ({}, fixed) for model in LORA]
    assert "teacher, the teacher: 8.19 billion parameters." in " ".join(sentences(plans[2], [], None))
    small, adapter, large, both = (found.learner for found in plans)
    assert small.teacher == 6 * 596_049_920
    assert large.teacher == both.teacher == 2 * 8_190_735_360
    assert adapter.teacher < small.teacher
    assert large.teacher_states > small.teacher_states, "hidden states are wider"
    assert small.cpu - large.cpu == pytest.approx(4 * 596_049_920), "no averages in the checkpoint"
    with pytest.raises(ConfigurationError, match=r"objective\.teacher_path is .* cannot be read"):
        planner.plan(run(own, objective=fixed | {"teacher_path": str(tmp_path)}))


def test_a_kv_cache_is_as_large_as_vllm_makes_it(tmp_path: Path) -> None:
    """vLLM reported 272 blocks of 128 tokens in 427,819,008 bytes for this shape."""
    folder = folder_of(tmp_path, num_hidden_layers=12, num_key_value_heads=4, head_dim=64)
    server = sizing.server(run(folder), sizing.read_shape(folder))
    assert server.kv_token == 427_819_008 / (272 * 128)


def test_settings_that_fit_stay(tmp_path: Path) -> None:
    found = planner.plan(run(folder_of(tmp_path, "qwen3-0.6b")), Gpus(2, 80 * GIB), response_tokens=500)
    assert found.fits
    assert not found.changes
    assert found.slots is not None
    assert found.slots > 40


def test_proposed_settings_fit_and_cost_no_more_than_needed(tmp_path: Path) -> None:
    config, gpus = run(folder_of(tmp_path), rollout={"max_response_tokens": 2048}), Gpus(8, 80 * GIB)
    found = planner.plan(config, gpus, response_tokens=1000)
    assert found.fits is False
    assert found.learner.total <= planner.usable(gpus) < sizing.learner(config, found.shape, 1000).total
    changed = planner.with_changes(config, found.changes)
    assert changed == found.config
    assert changed.training.num_ranks + changed.rollout.num_servers == 8
    for field in found.changes:  # without any one of them the run would not fit, or a GPU would be idle
        fewer = planner.with_changes(config, {name: value for name, value in found.changes.items() if name != field})
        assert field == "rollout.num_servers" or not planner.fits(fewer, found.shape, gpus, 1000), field


def test_one_gpu_is_shared(tmp_path: Path) -> None:
    config = run(folder_of(tmp_path, "qwen3-0.6b"), rollout={"max_response_tokens": 1024}, training={"num_ranks": 2})
    found = planner.plan(config, Gpus(1, 48 * GIB), response_tokens=500)
    assert found.config.training.num_ranks == found.config.rollout.num_servers == 1
    assert found.server_bytes == planner.usable(Gpus(1, 48 * GIB)) - found.learner.total
    assert found.server.least <= found.server_bytes


@pytest.mark.parametrize(
    ("gpus", "sections", "field", "words"),
    [
        (Gpus(2, 16 * GIB), {}, "model.path", "8.19 billion parameters"),
        (Gpus(8, 4 * GIB), {}, "model.path", "each of 4 GPUs (rollout.tensor_parallel_size)"),
        (Gpus(2, 24 * GIB), {"rollout": {"max_response_tokens": 60_000}}, "rollout.max_response_tokens", "60000"),
        (Gpus(2, 24 * GIB), {"rollout": {"max_response_tokens": 256}}, "model.path", "Set model.lora"),
    ],
    ids=["server's weights", "server's parts", "one sequence", "learner's states"],
)
def test_what_cannot_fit_is_refused_with_field_value_and_remedy(
    tmp_path: Path, gpus: Gpus, sections: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        planner.plan(run(folder_of(tmp_path), **sections), gpus, response_tokens=200)
    assert refused.value.field == field
    assert words in str(refused.value)
    assert "(--gpu-memory)" in refused.value.message


@pytest.mark.parametrize(
    ("size", "per_gpu", "keys"), [(2, 4_096_000_000, 512), (16, 8_190_735_360 / 16 + 36 * 2 * 4096 * 64, 128)]
)
def test_a_server_of_several_gpus_holds_a_part_on_each(tmp_path: Path, size: int, per_gpu: float, keys: int) -> None:
    """With 16 GPUs, each of the 8 key-value heads is on two."""
    config = run(folder_of(tmp_path), rollout={"tensor_parallel_size": size})
    shape = sizing.read_shape(str(tmp_path))
    assert shape.num_shard_parameters(1) == shape.num_parameters
    assert shape.num_shard_parameters(size) == pytest.approx(per_gpu, rel=0.001)
    assert sizing.server(config, shape).kv_token == 2 * 36 * keys * 2


def test_a_model_too_large_for_one_gpu_gets_servers_of_several(tmp_path: Path) -> None:
    config = run(folder_of(tmp_path), rollout={"max_response_tokens": 512}, model={"lora": {"rank": 16}})
    found = planner.plan(config, Gpus(8, 16 * GIB), response_tokens=200)
    rollout, training = found.config.rollout, found.config.training
    assert found.changes["rollout.tensor_parallel_size"] == rollout.tensor_parallel_size == 2
    assert 7 <= rollout.num_servers * 2 + training.num_ranks <= 8
    assert found.server.least <= planner.usable(Gpus(8, 16 * GIB))


@pytest.mark.parametrize(("size", "words"), [(8, "of which the learner needs one"), (3, "one of 1, 2, 4, 8, 16, 32")])
def test_a_size_that_cannot_work(tmp_path: Path, size: int, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refused:
        planner.plan(run(folder_of(tmp_path), rollout={"tensor_parallel_size": size}), Gpus(8, 80 * GIB))
    assert refused.value.field == "rollout.tensor_parallel_size"


def test_lora_fits_where_the_whole_model_does_not(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"rollout": {"max_response_tokens": 256}, "model": {"lora": {"rank": 16}}}
    assert planner.plan(run(folder_of(tmp_path), **sections), Gpus(2, 24 * GIB), response_tokens=200).changes


def test_a_base_in_4_bits_fits_a_gpu_that_half_precision_does_not(tmp_path: Path) -> None:
    """Of the server in turn with it, the whole model is in bfloat16 as ever."""
    values: dict[str, Any] = {"rollout": {"max_response_tokens": 256}, "training": {"zero_stage": 2}}
    plain = run(folder_of(tmp_path), model={"lora": {}}, **values)
    small = run(folder_of(tmp_path), model={"lora": {"load_in_4bit": True}}, **values)
    shape = sizing.read_shape(str(tmp_path))
    found, other = sizing.learner(small, shape), sizing.learner(plain, shape)
    linear = 36 * (2 * 4096 * (4096 + 1024) + 3 * 4096 * 12288)
    assert other.weights - found.weights == pytest.approx(linear * (2 - 0.5159), rel=1e-4)
    assert sizing.server(small, shape) == sizing.server(plain, shape)
    assert sizing.published_bytes(small, shape) == 2 * 8_190_735_360
    assert sizing.checkpoint_bytes(small, shape) - sizing.checkpoint_bytes(plain, shape) == 2 * 8_190_735_360
    assert all(changes.get("training.zero_stage", 2) < 3 for changes in planner.candidates(small, Gpus(4, 80 * GIB)))


def test_an_optimizer_in_cpu_memory_leaves_the_gpu(tmp_path: Path) -> None:
    training = {"zero_stage": 2, "num_ranks": 2}
    plain = run(folder_of(tmp_path), training=training)
    moved = run(folder_of(tmp_path), training=training | {"offload_optimizer": True})
    shape = sizing.read_shape(str(tmp_path))
    found, other = sizing.learner(moved, shape), sizing.learner(plain, shape)
    assert other.total - found.total == pytest.approx(12 / 2 * shape.num_parameters)
    assert found.cpu - other.cpu == pytest.approx(18 * shape.num_parameters), "of both ranks"


def test_models_that_the_formulas_do_not_cover_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="type mamba"):
        planner.plan(run(folder_of(tmp_path, model_type="mamba")))
    with pytest.raises(ConfigurationError, match=r"config\.json cannot be read"):
        planner.plan(run("Qwen/Qwen3-8B"))


def test_times_follow_rates_and_overlap(tmp_path: Path) -> None:
    config = run(folder_of(tmp_path), training={"prompts_per_step": 10, "num_ranks": 2})
    found = planner.plan(config)
    rates = planner.Rates(train_tokens=1000.0, sample_tokens=2000.0, push_bytes=8_190_735_360)
    times = planner.times(found, rates, 100)  # 10 prompts x 8 responses x 100 tokens
    assert (times.sample, times.train, times.push) == (4.0, 4.0, 2.0)
    assert times.step(0) == 10.0
    assert times.step(1) == 6.0


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"name: x\nmodel: {{path: {folder_of(tmp_path)}}}\ndata: {{train: t}}\ntraining: {{steps: 3}}\n")
    machine = ["--gpus", "8", "--gpu-memory", "80", "--response-tokens", "1000"]
    text = CliRunner().invoke(app, ["runs", "plan", str(file), *machine])
    assert text.exit_code == 0, text.output
    assert "--set training.gradient_checkpointing=true" in text.output
    printed = json.loads(CliRunner().invoke(app, ["runs", "plan", str(file), *machine, "--json"]).output)
    assert printed["num_parameters"] == 8_190_735_360
    assert printed["fits"] is False
    assert printed["changes"]["training.gradient_checkpointing"] is True
    assert printed["learner"]["total"] <= printed["usable_bytes"]
    half = CliRunner().invoke(app, ["runs", "plan", str(file), "--gpus", "8"])
    assert half.exit_code != 0


def test_one_gpu_in_turns_needs_the_larger_part_and_is_proposed_where_both_do_not_fit(tmp_path: Path) -> None:
    gpus = Gpus(1, 20 * GIB)
    found = planner.plan(run(folder_of(tmp_path, "qwen3-0.6b")), gpus, response_tokens=500)
    assert found.changes["rollout.share_gpu"] is True
    assert found.changes["training.max_staleness"] == 0
    assert (
        found.learner.total + found.server.least > planner.usable(gpus) >= max(found.learner.total, found.server.least)
    )
    assert found.server_bytes == planner.usable(gpus), "the KV cache gets what the learner leaves, which is all of it"
    apart = planner.with_changes(found.config, {"rollout.share_gpu": False})
    parked = found.learner.cpu - sizing.learner(apart, found.shape, 500).cpu
    assert parked == 24 * found.shape.num_parameters
    assert planner.fits(found.config, found.shape, Gpus(2, 20 * GIB), response_tokens=500), "it uses one of them"

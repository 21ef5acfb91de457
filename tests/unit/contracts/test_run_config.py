"""Run configurations: presets are the paper's, bad input gets one clear sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.contracts.errors import ConfigurationError
from services.contracts.objectives.registry import OBJECTIVES, PRESETS
from services.contracts.run_config import ObjectiveSection, RunConfig, merge, parse_run_config, read_run_config

MINIMAL: dict[str, Any] = {
    "name": "try",
    "model": {"path": "m"},
    "data": {"train": "t.jsonl", "validation": "v.jsonl"},
    "training": {"steps": 3},
}


def test_presets_have_the_values_of_table_3() -> None:
    def value(method: str, section: str, field: str) -> Any:
        config = parse_run_config({**MINIMAL, "preset": f"paper-{method}"})
        return getattr(getattr(config, section), field)

    for method, learning_rate, minibatch in (("grpo", 1e-6, 8), ("sdpo", 1e-5, 32), ("srpo", 5e-6, 32)):
        assert value(method, "objective", "name") == method
        assert value(method, "optimizer", "learning_rate") == learning_rate
        assert value(method, "training", "prompts_per_minibatch") == minibatch
        assert value(method, "training", "prompts_per_step") == 32
        assert value(method, "training", "max_staleness") == 0
        assert value(method, "rollout", "group_size") == 8
        assert value(method, "rollout", "temperature") == 1.0
        assert value(method, "rollout", "max_prompt_tokens") == 2048
        assert value(method, "rollout", "max_response_tokens") == 8192
        assert value(method, "objective", "importance_weight_cap") == 2.0
        assert value(method, "optimizer", "warmup_steps") == 10
        assert value(method, "optimizer", "weight_decay") == 0.01
        assert value(method, "optimizer", "gradient_clip") == 1.0
        assert value(method, "evaluation", "num_samples") == 16
        assert value(method, "evaluation", "temperature") == 0.6
        assert value(method, "evaluation", "top_p") == 0.95
    for method in ("grpo", "srpo"):
        assert value(method, "objective", "clip_high") == 0.28
    for method in ("sdpo", "srpo"):
        assert value(method, "objective", "top_k") == 100
        assert value(method, "objective", "divergence_alpha") == 0.5
        assert value(method, "objective", "teacher_ema_rate") == 0.05
    assert value("srpo", "objective", "beta") == 1.0
    assert set(PRESETS) == {"paper-grpo", "paper-sdpo", "paper-srpo"}


def test_fields_given_win_over_the_preset() -> None:
    config = parse_run_config({**MINIMAL, "preset": "paper-grpo", "optimizer": {"learning_rate": 1e-3}})
    assert config.optimizer.learning_rate == 1e-3
    assert config.optimizer.warmup_steps == 10
    assert config.training.steps == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"path": "m", "typo": 1}}, ["model.typo is not a field"]),
        ({"data": {}}, ["data.train is missing"]),
        ({"training": {"steps": 0}}, ["training.steps is 0", "greater than or equal to 1"]),
        ({"training": {"steps": "many"}}, ["training.steps is 'many'", "integer"]),
        ({"training": {"steps": True}}, ["training.steps is True", "true and false"]),
        ({"preset": "best"}, ["preset 'best' does not exist", "paper-srpo"]),
        ({"rollout": {"group_size": 1}}, ["rollout.group_size is 1", "siblings"]),
        ({"rollout": {"temperature": 0}}, ["rollout.temperature is 0", "use about 1"]),
        (
            {"training": {"steps": 1, "prompts_per_step": 8, "prompts_per_minibatch": 3}},
            ["prompts_per_minibatch is 3", "does not divide", "choose a divisor"],
        ),
        (
            {"data": {"train": "t", "curriculum": {"solved": 2, "return_after_steps": 1}}, "training": {"steps": 9}},
            ["data.curriculum.return_after_steps is 1", "data.curriculum.solved is 2", "remove one"],
        ),
        (
            {"data": {"train": "t", "curriculum": {"return_after_steps": 9}}, "training": {"steps": 9}},
            ["data.curriculum.return_after_steps is 9", "training.steps is 9", "lower it"],
        ),
        ({"data": {"train": "t", "curriculum": {"unseen": 0}}}, ["data.curriculum.unseen is 0", "0.001"]),
        (
            {"training": {"steps": 1, "prompts_per_step": 8, "refill": 161}},
            ["training.refill is 161", "prompts_per_step (8)", "lower it"],
        ),
        ({"objective": {"name": "grpo", "feedback": "fallback"}}, ["objective.feedback is fallback", "remove it"]),
        (
            {"data": {"train": "t.jsonl"}, "evaluation": {"every_steps": 5}},
            ["evaluation.every_steps is 5", "add data.validation"],
        ),
        ({"optimizer": {"learning_rate": float("nan")}}, ["optimizer.learning_rate", "finite"]),
        ({"name": "../../etc"}, ["name is '../../etc'"]),
        ({"optimizer": {"betas": [0.9, 1.0]}}, ["optimizer.betas.1 is 1.0", "less than or equal to 0.999999"]),
        ({"optimizer": {"betas": [1.0, 0.999]}}, ["optimizer.betas.0 is 1.0", "less than or equal to 0.999999"]),
        ({"optimizer": {"epsilon": 1e-46}}, ["optimizer.epsilon is 1e-46", "greater than or equal to"]),
        ({"optimizer": {"epsilon": 1e6}}, ["optimizer.epsilon is 1000000.0", "less than or equal to 1"]),
        ({"optimizer": {"learning_rate": 1e30}}, ["optimizer.learning_rate is 1e+30", "less than or equal to 1"]),
        ({"optimizer": {"learning_rate": 5e-324}}, ["optimizer.learning_rate is 5e-324", "greater than or equal to"]),
        ({"optimizer": {"gradient_clip": 1e-300}}, ["optimizer.gradient_clip is 1e-300", "greater than or equal to"]),
        ({"optimizer": {"weight_decay": 1e9}}, ["optimizer.weight_decay is 1000000000.0", "less than or equal to 1"]),
        ({"objective": {"clip_high": 1e300}}, ["objective.clip_high is 1e+300", "less than or equal to 1000000"]),
        ({"objective": {"dual_clip": 1.0}}, ["objective.dual_clip is 1.0", "greater than 1"]),
        ({"objective": {"importance_weight_cap": 1e39}}, ["objective.importance_weight_cap is 1e+39", "less than"]),
        ({"objective": {"importance_weight_cap": 1e-300}}, ["importance_weight_cap is 1e-300", "greater than"]),
        ({"objective": {"reference_kl_coefficient": 1e300}}, ["reference_kl_coefficient is 1e+300", "less than"]),
        ({"objective": {"teacher_ema_rate": 1e-300}}, ["objective.teacher_ema_rate is 1e-300", "greater than"]),
        ({"objective": {"divergence_alpha": 1e-9}}, ["objective.divergence_alpha is 1e-09", "0.001 to 0.999"]),
        (
            {"objective": {"weight_floor": 0.2, "beta": 0}},
            ["objective.weight_floor is 0.2", "all tokens have weight 1", "remove it"],
        ),
        (
            {"objective": {"surrogate": "cispo", "dual_clip": 3}},
            ["objective.dual_clip is 3.0", "surrogate cispo", "remove one of the two"],
        ),
        ({"objective": {"surrogate": "cispo", "ratio": "sequence"}}, ["objective.ratio is sequence", "cispo"]),
        (
            {"objective": {"teacher_update": "frozen", "teacher_ema_rate": 0.1}},
            ["objective.teacher_ema_rate is 0.1", "teacher_update is frozen", "set teacher_update to ema"],
        ),
        (
            {"objective": {"teacher_every_steps": 5}},
            ["objective.teacher_every_steps is 5", "teacher_update is ema", "remove it", "to every or gated"],
        ),
        (
            {"objective": {"demonstration": "reference", "feedback": "alone"}},
            ["objective.demonstration is reference", "feedback alone", "with_solution"],
        ),
        (
            {"objective": {"teacher_path": "large"}},
            ["objective.teacher_path is large", "teacher_update is ema", "set it to frozen"],
        ),
        (
            {"objective": {"demonstration": "none"}},
            ["objective.demonstration is none", "self-teacher", "set objective.teacher_path"],
        ),
        (
            {
                "objective": {
                    "teacher_path": "large",
                    "teacher_update": "frozen",
                    "demonstration": "none",
                    "feedback": "fallback",
                    "demonstration_thinking": "keep",
                }
            },
            ["objective.feedback fallback shows a solution", "alone", "objective.demonstration_thinking is keep"],
        ),
        (
            {"objective": {"demonstrations": 3, "feedback": "alone"}},
            ["objective.demonstrations is 3", "objective.feedback alone shows no solution", "remove it"],
        ),
        (
            {"objective": {"demonstrations": 8}},
            ["objective.demonstrations is 8", "rollout.group_size is 8", "at most 7 siblings", "lower it"],
        ),
        (
            {"objective": {"wrong_hint": 1.0, "feedback": "alone"}, "rollout": {"group_size": 2}},
            ["objective.wrong_hint is 1.0", "feedback alone shows no solution", "group_size is 2", "use 3 or more"],
        ),
        ({"objective": {"engine_mask_low": 0.9}}, ["objective.engine_mask_low is 0.9", "engine_mask is none"]),
        ({"objective": {"routing": "failed_groups"}}, ["objective.routing is failed_groups", "objective.feedback"]),
        ({"objective": {"success_threshold": 0}}, ["objective.success_threshold is 0", "greater than 0"]),
        (
            {"rollout": {"share_gpu": True, "num_servers": 2}, "training": {"num_ranks": 2}},
            ["training.max_staleness is 1", "to 0", "rollout.num_servers is 2", "training.num_ranks is 2"],
        ),
        (
            {"rollout": {"share_gpu": True}, "training": {"max_staleness": 0}, "weights": {"transport": "cuda_ipc"}},
            ["rollout.share_gpu is true", "weights.transport is cuda_ipc", "use store"],
        ),
        ({"rollout": {"temperature": 0.009}}, ["rollout.temperature is 0.009", "vLLM", "0.01 or more"]),
        ({"rollout": {"temperature": 1e9}}, ["rollout.temperature is 1000000000.0", "less than or equal to 100"]),
        ({"rollout": {"top_k": 1}}, ["rollout.top_k is 1", "siblings", "2 or more"]),
        ({"rollout": {"top_p": 1e-300}}, ["rollout.top_p is 1e-300", "greater than or equal to 0.01"]),
        ({"rollout": {"min_p": 1}}, ["rollout.min_p is 1", "less than or equal to 0.99"]),
        ({"rollout": {"presence_penalty": 3}}, ["rollout.presence_penalty is 3", "less than or equal to 2"]),
        ({"rollout": {"stop": "###"}}, ["rollout.stop is '###'", "list of texts"]),
        ({"rollout": {"stop": ["a", ""]}}, ["rollout.stop.1 is ''", "at least 1 character"]),
        ({"rollout": {"stop_token_ids": [-1]}}, ["rollout.stop_token_ids.0 is -1", "greater than or equal to 0"]),
        ({"rollout": {"repetition_penalty": 1.1}}, ["rollout.repetition_penalty is not a field"]),
        ({"evaluation": {"temperature": 0.001}}, ["evaluation.temperature is 0.001", "vLLM", "0.01 or more"]),
        ({"model": {"lora": {"alpha": 1e300}}}, ["model.lora.alpha is 1e+300", "less than or equal to"]),
        ({"model": {"lora": {"rank": 0}}}, ["model.lora.rank is 0", "greater than or equal to 1"]),
        ({"model": {"lora": {"dropout": 0.1}}}, ["model.lora.dropout is not a field"]),
        ({"model": {"lora": {"target_modules": "q_proj"}}}, ["model.lora.target_modules is 'q_proj'", "give a list"]),
        ({"model": {"lora": {"target_modules": ["q_proj", "lm_head"]}}}, ["target_modules", "lm_head cannot have"]),
        (
            {"model": {"lora": {}}, "training": {"offload_teacher": True}},
            ["training.offload_teacher has no use with model.lora", "remove it"],
        ),
        (
            {"training": {"offload_optimizer": True}},
            ["training.offload_optimizer is true, but training.zero_stage is 1", "set training.zero_stage to 2"],
        ),
        (
            {"model": {"lora": {"load_in_4bit": True}}, "training": {"zero_stage": 3}},
            ["model.lora.load_in_4bit is true, but training.zero_stage is 3", "use 2"],
        ),
    ],
)
def test_bad_input_names_field_value_and_remedy(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse_run_config(merge(MINIMAL, changes) if "data" not in changes else {**MINIMAL, **changes})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": {"temperature": 0}, "rollout": {"temperature": 0.01, "top_k": 2, "top_p": 0.01}},
        {"objective": {"divergence_alpha": 0}},
        {"objective": {"divergence_alpha": 1}},
        {
            "objective": {
                "name": "sdpo",
                "teacher_path": "large",
                "teacher_update": "frozen",
                "demonstration": "none",
                "divergence_alpha": 1,
            },
            "rollout": {"group_size": 1},
        },
        {
            "objective": {"teacher_path": "large", "teacher_update": "frozen"},
            "model": {"lora": {"rank": 16, "alpha": 32.0, "target_modules": "all-linear", "load_in_4bit": False}},
            "training": {"offload_teacher": True},
        },
        {
            "model": {"lora": {"rank": 1, "alpha": 1e6, "target_modules": ("q_proj",), "load_in_4bit": True}},
            "weights": {"transport": "nccl"},
        },
        {"optimizer": {"betas": [0, 0], "weight_decay": 0, "warmup_steps": 0, "learning_rate": 1}},
    ],
)
def test_the_ends_of_the_ranges_are_taken(changes: dict[str, Any]) -> None:
    config = parse_run_config(merge(MINIMAL, changes)).model_dump()
    assert all(
        config[section][field] == value or field == "betas"
        for section in changes
        for field, value in changes[section].items()
    )


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as error:
        parse_run_config({"name": "x", "model": {}, "data": {}, "training": {"steps": -1}})
    for word in ("model.path", "data.train", "training.steps"):
        assert word in str(error.value)


@pytest.mark.parametrize("body", [None, [], "text", 3])
def test_a_body_that_is_no_mapping_is_refused(body: object) -> None:
    with pytest.raises(ConfigurationError):
        parse_run_config(body)


def test_without_validation_data_there_is_no_evaluation() -> None:
    config = parse_run_config({**MINIMAL, "data": {"train": "t.jsonl"}})
    assert config.evaluation.every_steps is None
    assert not config.evaluation.before_training
    assert not config.evaluation.after_training


def test_a_configuration_survives_json() -> None:
    config = parse_run_config(
        {**MINIMAL, "preset": "paper-srpo", "model": {"path": "m", "lora": {"target_modules": ["q_proj", "v_proj"]}}}
    )
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


NOT_THE_DEFAULT: dict[str, Any] = {
    "aggregation": "sequence",
    "advantage": "mean_std",
    "clip_low": 0.1,
    "clip_high": 0.2,
    "ratio": "sequence",
    "surrogate": "cispo",
    "dual_clip": 3.0,
    "reference_kl_coefficient": 0.1,
    "skip_uninformative_groups": True,
    "divergence_alpha": 0.2,
    "wrong_hint": 0.5,
    "top_k": None,
    "beta": 2.0,
    "position_beta": 0.5,
    "question_weight": "difficulty",
    "weight_floor": 0.1,
    "teacher_update": "every",
    "teacher_every_steps": 5,
    "teacher_ema_rate": 0.1,
    "teacher_path": "large",
    "teacher_chat_template_kwargs": {"enable_thinking": True},
    "demonstration": "random",
    "demonstrations": 2,
    "teacher_solution_heading": "Hint:",
    "teacher_feedback_heading": "Wrong, because",
    "teacher_closing": "",
    "demonstration_thinking": "keep",
    "feedback": "fallback",
    "routing": "group",
    "keep_contrast": 0.5,
    "distil": "correct",
    "mix_lambda": 0.5,
    "rlsd_lambda": 0.3,
    "rlsd_clip": 0.4,
    "success_threshold": 0.7,
    "mask_truncated": True,
    "importance_weight_cap": 3.0,
    "engine_mask": "token",
    "engine_mask_low": 0.9,
    "engine_mask_high": 1.1,
}
NEEDED_WITH: dict[str, dict[str, Any]] = {
    "weight_floor": {"position_beta": 0.5},
    "teacher_every_steps": {"teacher_update": "every"},
    "teacher_path": {"teacher_update": "frozen"},
    "teacher_feedback_heading": {"feedback": "with_solution"},
    "engine_mask_low": {"engine_mask": "token"},
    "engine_mask_high": {"engine_mask": "token"},
}
"""Fields that alone would do nothing."""
assert NOT_THE_DEFAULT.keys() == set(ObjectiveSection.model_fields) - {"name"}


@pytest.mark.parametrize(
    ("objective", "field"),
    [
        ({"teacher_feedback_heading": "Wrong:"}, "teacher_feedback_heading"),
        ({"feedback": "alone", "teacher_solution_heading": "Hint:"}, "teacher_solution_heading"),
        (
            {
                "demonstration": "none",
                "teacher_path": "large",
                "teacher_update": "frozen",
                "teacher_solution_heading": "Hint:",
            },
            "teacher_solution_heading",
        ),
    ],
)
def test_a_heading_of_what_the_teacher_does_not_read_is_refused(objective: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=f"objective.{field} is given, but objective") as error:
        parse_run_config({**MINIMAL, "objective": objective})
    assert error.value.field == f"objective.{field}"


@pytest.mark.parametrize("field", NOT_THE_DEFAULT)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_field_that_the_objective_does_not_take_is_refused_by_name(name: str, field: str) -> None:
    value = NOT_THE_DEFAULT[field]
    body = {**MINIMAL, "objective": {"name": name, field: value}}
    if field in OBJECTIVES[name].takes:
        body["objective"] |= NEEDED_WITH.get(field, {})
        assert getattr(parse_run_config(body).objective, field) == value
        return
    with pytest.raises(ConfigurationError, match=f"objective.{field} is {value}, but objective.name {name}") as error:
        parse_run_config(body)
    assert error.value.field == f"objective.{field}"
    default = ObjectiveSection.model_fields[field].default
    assert parse_run_config({**MINIMAL, "objective": {"name": name, field: default}})


def test_a_stored_field_that_the_objective_does_not_take_has_no_effect() -> None:
    stored = {**MINIMAL, "objective": {"name": "grpo", "beta": 3.0, "clip_low": 0.1}}
    objective = read_run_config(json.dumps(stored)).objective
    assert (objective.beta, objective.clip_low) == (1.0, 0.1)

"""ExperimentConfig files, what an experiment does next, and how results become verdicts."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from services.api.resources.experiments.results import History, interval, student_t, summarize, verdict
from services.contracts.errors import ConfigurationError
from services.contracts.events import EvaluationFinished
from services.contracts.experiments.experiment import (
    Cell,
    final_cells,
    parse_experiment,
    run_config,
    tuning_cells,
)
from services.contracts.experiments.plan import (
    NothingToChooseError,
    RunFact,
    cells_of,
    choose,
    is_complete,
    next_cells,
)
from services.contracts.run_config import merge

FILE: dict[str, Any] = {
    "name": "rates",
    "run": {
        "model": {"path": "models/tiny"},
        "data": {"train": "train.jsonl"},
        "training": {"steps": 40, "prompts_per_step": 4},
        "evaluation": {"every_steps": 10},
    },
    "methods": {"srpo": {}, "grpo": {"objective": {"name": "grpo"}}},
    "baseline": "grpo",
    "tuning": {
        "seeds": [11, 12],
        "grid": {"optimizer.learning_rate": [1e-4, 2e-4]},
        "grid_of": {"grpo": {"optimizer.learning_rate": [1e-4, 2e-4, 4e-4]}},
        "changes": {"data": {"validation": "validation.jsonl"}, "training": {"steps": 20}},
    },
    "final": {"seeds": [1, 2, 3], "changes": {"data": {"validation": "test.jsonl"}}},
    "budgets": {"steps": [10, 40], "seconds": [25.0]},
    "last_evaluations": 2,
    "claims": [
        {
            "claim": "SRPO ends above GRPO",
            "higher": {"method": "srpo"},
            "lower": {"method": "grpo"},
        }
    ],
}


UNKNOWN_METRIC = {"claim": "x", "higher": {"method": "srpo", "metric": "acc"}, "lower": {"method": "grpo"}}
STEPS_BEFORE = {
    "claim": "Steps get faster",
    "higher": {"method": "grpo"},
    "lower": {"method": "srpo", "metric": "seconds", "at": "before"},
}
HUNDRED = list(range(100, 200))


def changed(**changes: Any) -> dict[str, Any]:
    return merge(copy.deepcopy(FILE), changes)


def test_the_cells_are_all_combinations_and_methods_alternate() -> None:
    experiment = parse_experiment(FILE)
    tuning = tuning_cells(experiment)
    assert len(tuning) == 2 * (2 + 3)
    assert [(cell.method, cell.point, cell.seed) for cell in tuning[:3]] == [
        ("srpo", 0, 11),
        ("grpo", 0, 11),
        ("srpo", 1, 11),
    ]
    finals = final_cells(experiment, {"srpo": 1, "grpo": 2})
    assert [(cell.method, cell.point, cell.seed) for cell in finals[:2]] == [("srpo", 1, 1), ("grpo", 2, 1)]
    assert len({cell.key for cell in [*tuning, *finals]}) == len(tuning) + 6


def test_a_cell_lays_method_phase_and_grid_over_the_shared_part() -> None:
    experiment = parse_experiment(FILE)
    tuning = run_config(experiment, Cell.of("tuning", "grpo", 2, 12))
    assert tuning.optimizer.learning_rate == 4e-4
    assert tuning.training.steps == 20
    assert tuning.training.seed == 12
    assert tuning.objective.name == "grpo"
    assert tuning.data.validation == "validation.jsonl"
    final = run_config(experiment, Cell.of("final", "srpo", 1, 3))
    assert (final.optimizer.learning_rate, final.training.steps, final.training.seed) == (2e-4, 40, 3)
    assert final.data.validation == "test.jsonl"


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"tuning": {"seeds": [3, 12]}}, "tuning.seeds", "share 3"),
        ({"tuning": {"changes": {"data": {"validation": "test.jsonl"}}}}, "tuning.changes", "tuned on the questions"),
        ({"baseline": "ppo"}, None, "ppo, which is not one of methods"),
        ({"methods": {"bad": {"objective": {"name": "ppo"}}}}, "methods.bad", "objective.name is 'ppo'"),
        ({"tuning": {"grid": {"optimizer.learning_rat": [1.0]}}}, "methods.srpo", "optimizer.learning_rate is meant"),
        ({"budgets": {"steps": [50]}}, "budgets.steps", "trains for 40 steps"),
        ({"final": {"changes": {"evaluation": {"after_training": False}}}}, "methods.srpo", "not evaluated"),
        (
            {"claims": [{"claim": "x", "higher": {"method": "srpo", "at": "late"}, "lower": {"method": "grpo"}}]},
            "claims.0.higher.at",
            "claims.0.higher.at is 'late': write before, start, end, best, a step, or two steps",
        ),
        ({"claims": [UNKNOWN_METRIC]}, None, "acc, which is not a metric"),
        ({"claims": [STEPS_BEFORE]}, None, "claims.0.lower.at is before, but seconds is a metric of training steps"),
        ({"final": {"seeds": HUNDRED}, "methods": {f"m{i}": {} for i in range(12)}}, None, "more than 1000"),
        ({"seed": 3}, "seed", "seed is not a field"),
    ],
)
def test_a_file_that_cannot_give_a_fair_comparison_is_refused(
    changes: dict[str, Any], field: str | None, words: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_experiment(changed(**changes))
    assert words in caught.value.message
    assert caught.value.remedy
    if field is not None:
        assert caught.value.field == field


def facts_of(scores: dict[tuple[str, int], float], experiment: Any) -> dict[str, RunFact]:
    return {
        cell.key: RunFact("succeeded", scores[cell.method, cell.point] + 0.01 * (cell.seed - 11))
        for cell in tuning_cells(experiment)
    }


def test_the_point_with_the_best_mean_is_chosen_once_all_tuning_runs_have_ended() -> None:
    experiment = parse_experiment(FILE)
    scores = {("srpo", 0): 0.5, ("srpo", 1): 0.6, ("grpo", 0): 0.4, ("grpo", 1): 0.4, ("grpo", 2): 0.3}
    facts = facts_of(scores, experiment)
    assert choose(experiment, facts) == {"srpo": 1, "grpo": 0}, "the first of equal points"
    for state in ("running", "stopped", "queued"):
        assert choose(experiment, facts | {"tuning/grpo/2/12": RunFact(state)}) is None  # type: ignore[arg-type]


def test_a_failed_run_counts_as_zero_and_a_method_without_any_run_ends_the_experiment() -> None:
    experiment = parse_experiment(FILE)
    scores = {("srpo", 0): 0.5, ("srpo", 1): 0.6, ("grpo", 0): 0.4, ("grpo", 1): 0.4, ("grpo", 2): 0.3}
    facts = facts_of(scores, experiment)
    assert choose(experiment, facts | {"tuning/srpo/1/12": RunFact("failed")}) == {"srpo": 0, "grpo": 0}
    failed = {key: RunFact("failed") for key in facts if "/grpo/" in key}
    with pytest.raises(NothingToChooseError, match="grpo"):
        choose(experiment, facts | failed)


def test_without_tuning_the_methods_are_taken_as_they_are() -> None:
    experiment = parse_experiment({key: value for key, value in FILE.items() if key != "tuning"})
    assert choose(experiment, {}) == {"srpo": 0, "grpo": 0}
    assert [cell.phase for cell in cells_of(experiment, {"srpo": 0, "grpo": 0})] == ["final"] * 6


def test_as_many_runs_start_as_there_is_room_for_in_order_and_none_twice() -> None:
    experiment = parse_experiment(FILE)
    cells = cells_of(experiment, None)
    assert [cell.key for cell in next_cells(cells, {}, 2)] == ["tuning/srpo/0/11", "tuning/grpo/0/11"]
    facts = {"tuning/srpo/0/11": RunFact("running"), "tuning/grpo/0/11": RunFact("succeeded", 0.5)}
    assert [cell.key for cell in next_cells(cells, facts, 2)] == ["tuning/srpo/1/11"]
    assert not next_cells(cells, facts, 1)
    assert not is_complete(cells, facts)
    assert is_complete(cells, dict.fromkeys((cell.key for cell in cells), RunFact("failed")))


def evaluation(step: int, accuracy: float) -> EvaluationFinished:
    return EvaluationFinished(
        run_id="run-1",
        at=0.0,
        step=step,
        split="test",
        num_questions=4,
        num_samples=2,
        accuracy=accuracy,
        pass_at_k=1.0,
    )


def history_of(
    seed: int, accuracies: dict[int, float], steps: int = 40, seconds: float = 1.0, **metrics: float
) -> History:
    return History(
        run_id=f"run-{seed}",
        seed=seed,
        steps=[{"seconds": seconds, **metrics} for _ in range(steps)],
        evaluations=[evaluation(step, value) for step, value in accuracies.items()],
        num_ahead=1,
    )


def test_results_pair_the_seeds_and_never_fill_in_what_is_missing() -> None:
    experiment = parse_experiment(FILE)
    histories = {
        ("srpo", 1): history_of(1, {0: 0.1, 10: 0.5, 20: 0.6, 30: 0.8, 40: 0.9}),
        ("srpo", 2): history_of(2, {0: 0.1, 10: 0.5, 20: 0.6, 30: 0.7, 40: 0.8}),
        ("srpo", 3): history_of(3, {0: 0.1, 10: 0.9, 20: 0.6, 30: 0.2, 40: 0.2}),
        ("grpo", 1): history_of(1, {0: 0.1, 10: 0.4, 20: 0.6, 30: 0.7, 40: 0.8}),
        ("grpo", 2): history_of(2, {0: 0.1, 10: 0.4, 20: 0.6, 30: 0.6, 40: 0.7}),
    }
    results = summarize(experiment, histories)
    srpo, grpo = results.methods
    assert srpo.score.values == pytest.approx([0.85, 0.75, 0.2])
    assert grpo.score.values[:2] == pytest.approx([0.75, 0.65])
    assert grpo.score.values[2] is None
    assert (srpo.num_collapsed, srpo.num_missing, grpo.num_missing) == (1, 0, 1)
    assert srpo.within_steps["10"].values == pytest.approx([0.5, 0.5, 0.9])
    assert srpo.within_steps["40"].values == pytest.approx([0.9, 0.8, 0.9])
    assert srpo.within_seconds["25"].values == pytest.approx([0.6, 0.6, 0.9])
    assert srpo.difference is not None
    assert srpo.difference.values[:2] == pytest.approx([0.1, 0.1])
    assert srpo.difference.values[2] is None
    assert (srpo.num_ahead, grpo.difference) == (2, None)
    assert [point.step for point in srpo.curve] == [0, 10, 20, 30, 40]


def test_steps_that_an_evaluation_sped_up_count_as_the_others() -> None:
    steps = [{"seconds": 2.0} for _ in range(10)]
    steps[5] = {"seconds": 0.5}  # sampled while the evaluation after step 5 ran
    found = history_of(1, {5: 0.5, 10: 0.6})
    found = History("r", 1, steps, found.evaluations, num_ahead=1)
    assert found.seconds_at(10) == pytest.approx(20.0)
    assert found.seconds_at(5) == pytest.approx(10.0)


def test_a_step_without_a_teacher_says_nothing_about_the_teachers_entropy() -> None:
    with_teacher = {"seconds": 1.0, "routing_ratio_sdpo": 0.5, "teacher_entropy_nats": 0.2}
    without = {"seconds": 1.0, "routing_ratio_sdpo": 0.0, "teacher_entropy_nats": 0.0}
    found = History("r", 1, [with_teacher, without, without], [], num_ahead=1)
    assert found.mean("teacher_entropy_nats", 1, 3) == pytest.approx(0.2)
    assert found.mean("routing_ratio_sdpo", 1, 3) == pytest.approx(0.5 / 3)
    assert found.mean("teacher_entropy_nats", 2, 3) is None


def test_a_claim_on_a_metric_of_steps_compares_parts_of_a_run() -> None:
    claim = {
        "claim": "The share falls",
        "higher": {"method": "srpo", "metric": "routing_ratio_sdpo", "at": "start"},
        "lower": {"method": "srpo", "metric": "routing_ratio_sdpo", "at": "end"},
    }
    experiment = parse_experiment(changed(claims=[claim]))
    histories = {}
    for seed in (1, 2, 3):
        steps = [{"seconds": 1.0, "routing_ratio_sdpo": 0.5 - 0.01 * step - 0.001 * seed} for step in range(40)]
        histories["srpo", seed] = History("r", seed, steps, history_of(seed, {0: 0.1, 40: 0.5}).evaluations, 1)
    (result,) = summarize(experiment, histories).claims
    assert result.verdict == "shown"
    assert result.difference.mean == pytest.approx(0.32)
    (result,) = summarize(experiment, {}).claims
    assert result.verdict == "no data"


def test_a_claim_can_compare_the_trained_with_the_untrained_model() -> None:
    claim = {
        "claim": "It learns",
        "higher": {"method": "srpo", "at": "end"},
        "lower": {"method": "srpo", "at": "before"},
    }
    experiment = parse_experiment(changed(claims=[claim]))
    histories = {("srpo", seed): history_of(seed, {0: 0.1, 10: 0.9, 20: 0.4, 30: 0.5, 40: 0.6}) for seed in (1, 2, 3)}
    (result,) = summarize(experiment, histories).claims
    assert result.difference.mean == pytest.approx(0.45)
    assert result.verdict == "shown"


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.1, 0.11, 0.12], "shown"),
        ([-0.1, -0.11, -0.12], "opposite"),
        ([0.1, -0.2, 0.3], "not shown"),
        ([0.1], "no data"),
        ([0.1, None], "no data"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_zero(differences: list[float | None], expected: str) -> None:
    assert verdict(interval(differences)) == expected


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (29, 2.0452)])
def test_the_quantiles_of_students_t_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert math.isclose(student_t(degrees), quantile, abs_tol=1e-4)

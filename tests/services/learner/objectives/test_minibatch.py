"""A whole mini-batch against the reference: loss, weights and gradients, for every objective."""

import dataclasses
import math
import random
from typing import Any

import pytest
import torch

from services.contracts.errors import TurnoutError
from services.contracts.step_metrics import STEP_METRICS
from services.learner.model import forward
from services.learner.model.tree_attention import share_prefixes
from services.learner.objectives.terms.contrast import contrast
from services.learner.objectives.terms.finite import NonFiniteError
from services.learner.packing.sequence import TrainSequence
from services.learner.update.scoring import old_logprobs
from services.learner.update.statistics import step_metrics, weight_histogram
from services.learner.update.update import run_minibatch
from tests.services.learner.objectives import reference
from tests.services.learner.objectives.builders import (
    VOCABULARY,
    PlainEngine,
    large_teacher,
    random_sequences,
    run_config,
    with_hints,
)

ALL_CUTS = {"min_p": 0.02, "presence_penalty": -0.8, "top_p": 0.8, "top_k": 12}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "srpo": {"name": "srpo", "top_k": 5},
    "srpo-beta-0": {"name": "srpo", "top_k": 5, "beta": 0.0},
    "srpo-full-vocabulary": {"name": "srpo", "top_k": None},
    "srpo-forward": {"name": "srpo", "top_k": 5, "divergence_alpha": 0.0},
    "srpo-reverse": {"name": "srpo", "top_k": 5, "divergence_alpha": 1.0, "beta": 3.0},
    "srpo-skewed": {"name": "srpo", "top_k": 3, "divergence_alpha": 0.2},
    "grpo": {"name": "grpo"},
    "sdpo": {"name": "sdpo", "top_k": 5},
    "advantage_mix": {"name": "advantage_mix"},
    "srpo-gspo": {"name": "srpo", "top_k": 5, "ratio": "sequence"},
    "grpo-gspo": {"name": "grpo", "ratio": "sequence", "clip_low": 0.05, "clip_high": 0.1},
    "advantage_mix-gspo": {"name": "advantage_mix", "ratio": "sequence"},
    "grpo-kl": {"name": "grpo", "reference_kl_coefficient": 0.3},
    "srpo-gspo-kl": {"name": "srpo", "top_k": 5, "ratio": "sequence", "reference_kl_coefficient": 0.3},
    "advantage_mix-half": {"name": "advantage_mix", "mix_lambda": 0.5},
    "srpo-sequence": {"name": "srpo", "top_k": 5, "aggregation": "sequence"},
    "sdpo-sequence": {"name": "sdpo", "top_k": 5, "aggregation": "sequence"},
    "grpo-gspo-sequence": {"name": "grpo", "ratio": "sequence", "aggregation": "sequence", "dual_clip": 1.3},
    "advantage_mix-sequence": {"name": "advantage_mix", "aggregation": "sequence", "dual_clip": 1.2},
    "srpo-contrast": {"name": "srpo", "top_k": 5, "keep_contrast": 0.4},
    "srpo-gspo-contrast": {"name": "srpo", "top_k": 5, "keep_contrast": 1.0, "ratio": "sequence", "dual_clip": 1.2},
    "srpo-position": {"name": "srpo", "top_k": 5, "beta": 0.0, "position_beta": 1.5},
    "srpo-all-weights": {
        "name": "srpo",
        "top_k": 5,
        "beta": 0.5,
        "position_beta": -2.0,
        "question_weight": "difficulty",
        "weight_floor": 0.2,
    },
    "sdpo-difficulty": {"name": "sdpo", "top_k": 5, "question_weight": "difficulty"},
    "srpo-icepop": {"name": "srpo", "top_k": 5, "engine_mask": "token", "importance_weight_cap": 5.0},
    "srpo-masked-responses": {
        "name": "srpo",
        "top_k": 5,
        "engine_mask": "sequence",
        "engine_mask_low": 0.3,
        "engine_mask_high": 3.0,
        "reference_kl_coefficient": 0.1,
    },
    "grpo-cispo": {"name": "grpo", "surrogate": "cispo"},
    "srpo-cispo-contrast": {"name": "srpo", "top_k": 5, "surrogate": "cispo", "keep_contrast": 0.5},
    "rlsd": {"name": "rlsd", "rlsd_clip": 0.6, "rlsd_lambda": 0.8},
    "rlsd-sequence": {"name": "rlsd", "aggregation": "sequence", "advantage": "mean_std"},
    "srpo-constant": {"name": "srpo", "top_k": 5, "aggregation": "constant"},
    "grpo-dual-kl": {"name": "grpo", "dual_clip": 1.2, "reference_kl_coefficient": 0.3},
    "grpo-min-p": {"name": "grpo", "reference_kl_coefficient": 0.3, "rollout": {"min_p": 0.1}},
    "grpo-presence": {"name": "grpo", "ratio": "sequence", "rollout": {"presence_penalty": 1.5}},
    "mix-top-p": {"name": "advantage_mix", "rollout": {"top_p": 0.7}},
    "srpo-top-k": {"name": "srpo", "top_k": 5, "engine_mask": "sequence", "rollout": {"top_k": 4}},
    "srpo-all-cuts": {"name": "srpo", "top_k": None, "keep_contrast": 0.5, "rollout": ALL_CUTS},
}


INVARIANT = ["srpo", "sdpo", "grpo", "advantage_mix", "srpo-gspo-kl", "srpo-sequence", "grpo-dual-kl"]
INVARIANT += ["srpo-all-cuts"]
INVARIANT += ["srpo-gspo-contrast", "srpo-all-weights", "srpo-masked-responses", "rlsd"]


def sequences_for(name: str, seed: int = 3, number: int = 14) -> list[TrainSequence]:
    routes = {"srpo": ("grpo", "sdpo", "none"), "grpo": ("grpo",), "sdpo": ("sdpo", "none"), "advantage_mix": ("grpo",)}
    routes["rlsd"] = routes["advantage_mix"]
    return random_sequences(seed, number, routes=routes[name], teach_grpo=name in ("advantage_mix", "rlsd"))


def shifted(old: list[torch.Tensor]) -> list[torch.Tensor]:
    """Pretend that pi_old differs from the student, so that ratios and clipping do their work."""
    generator = torch.Generator().manual_seed(5)
    return [value + 0.5 * torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in old]


def close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    """Equal relative to the largest gradient of the model."""
    scale = max(float(value.abs().max()) for value in right.values())
    assert scale > 0
    for name, value in right.items():
        assert float((left[name] - value).abs().max()) <= tolerance * scale, name


class Head(torch.nn.Linear):
    """A model whose vocabulary is padded with six rows more than there are tokens."""

    rules_out = True
    """With padding, whose logits are -inf, or without."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().forward(hidden)
        if not self.rules_out:
            return logits[..., :VOCABULARY]
        return logits.masked_fill(torch.arange(logits.shape[-1]) >= VOCABULARY, -math.inf)


def padded_engine() -> PlainEngine:
    engine = PlainEngine(torch.float64)
    for seed, model in enumerate((engine.student, engine.teacher, engine.reference)):
        assert model is not None
        torch.manual_seed(seed)
        head = Head(model.config.hidden_size, VOCABULARY + 6, bias=False, dtype=torch.float64)
        torch.nn.init.normal_(head.weight, std=0.4)
        model.lm_head = head
        model.config.vocab_size = VOCABULARY + 6
    return engine


@pytest.mark.parametrize("case", [*OBJECTIVES, "more-chosen-than-tokens"])
def test_a_vocabulary_whose_padding_is_ruled_out_trains_as_one_without_padding(case: str) -> None:
    objective = OBJECTIVES.get(case, {"name": "srpo", "top_k": VOCABULARY + 3})
    config = run_config(tokens_per_microbatch=20, **objective)
    sequences = sequences_for(config.objective.name)
    engine = padded_engine()
    old = shifted(old_logprobs(engine, sequences, config))
    heads = [model.lm_head for model in (engine.student, engine.teacher, engine.reference)]
    for head in heads:
        head.rules_out = False
    expected, _ = reference.minibatch_loss(engine.student, engine.teacher, sequences, old, config, engine.reference)
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in engine.student.named_parameters()}
    engine.student.zero_grad()
    for head in heads:
        head.rules_out = True

    report = run_minibatch(engine, sequences, old, config)

    assert report.loss == pytest.approx(expected.item(), rel=1e-6)
    close(engine.gradients, gradients, 1e-6)
    assert all(math.isfinite(value) for value in report.sums.values())
    assert report.sums["policy_entropy_sum"] > 0


@pytest.mark.parametrize("moved", [False, True], ids=["first-update", "later-update"])
@pytest.mark.parametrize("case", OBJECTIVES)
def test_loss_weights_and_gradients_equal_the_reference(case: str, moved: bool) -> None:
    config = run_config(tokens_per_microbatch=20, **OBJECTIVES[case])
    sequences = sequences_for(config.objective.name)
    engine = PlainEngine(torch.float64)
    old = shifted(old_logprobs(engine, sequences, config)) if moved else None
    expected, weights = reference.minibatch_loss(
        engine.student, engine.teacher, sequences, old, config, engine.reference
    )
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in engine.student.named_parameters()}
    engine.student.zero_grad()

    report = run_minibatch(engine, sequences, old, config, details=range(len(sequences)))

    assert engine.num_backward > 1
    # No tighter, because the model's RMS norms compute in float32 whatever its dtype.
    assert report.loss == pytest.approx(expected.item(), rel=1e-6)
    close(engine.gradients, gradients, 1e-6)
    for index, row in weights.items():
        assert report.details[index].weight == pytest.approx(row, rel=1e-6)


HINTED: dict[str, dict[str, Any]] = {
    "srpo": {"name": "srpo", "top_k": 5, "wrong_hint": 0.7},
    "sdpo": {"name": "sdpo", "top_k": None, "wrong_hint": 1.5, "position_beta": 1.0},
}


@pytest.mark.parametrize("share", [True, False], ids=["prefixes-shared", "single-rows"])
@pytest.mark.parametrize("case", HINTED)
def test_the_contrast_with_a_wrong_hint_equals_the_reference_however_it_is_cut(case: str, share: bool) -> None:
    """Some rollouts have no failed sibling, and therefore no contrast."""
    config = run_config(**HINTED[case])
    sequences = with_hints(sequences_for(config.objective.name))
    engine = PlainEngine(torch.float64, share=share)
    old = shifted(old_logprobs(engine, sequences, config))
    expected, weights = reference.minibatch_loss(engine.student, engine.teacher, sequences, old, config)
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in engine.student.named_parameters()}
    engine.student.zero_grad()
    plain, _ = reference.minibatch_loss(engine.student, engine.teacher, sequences_for(case), old, config)
    assert plain.item() != pytest.approx(expected.item(), rel=1e-2)
    for budget in (20, 4096):
        order = list(range(len(sequences)))[:: 1 if budget == 20 else -1]
        cut = run_config(tokens_per_microbatch=budget, **HINTED[case])
        report = run_minibatch(engine, [sequences[i] for i in order], [old[i] for i in order], cut, details=order)
        assert report.loss == pytest.approx(expected.item(), rel=1e-6)
        close(engine.gradients, gradients, 1e-6)
        for place, index in enumerate(order):
            if index in weights:
                assert report.details[place].weight == pytest.approx(weights[index], rel=1e-6)


def test_a_token_that_either_reading_excludes_keeps_the_teachers_probability() -> None:
    right, wrong = torch.tensor([[0.0, 1.0, -math.inf]]), torch.tensor([[0.5, -math.inf, -math.inf]])
    found = contrast(right, wrong, torch.tensor([2.0]))
    assert found.tolist() == [[-1.0, 1.0, -math.inf]]
    assert torch.equal(contrast(right, wrong, torch.zeros(1)), right)


FIXED = {"teacher_path": "large", "teacher_update": "frozen"}
FIXED_CASES: dict[str, dict[str, Any]] = {
    "srpo": {"name": "srpo", "top_k": 5, **FIXED},
    "on-policy": {"name": "sdpo", "top_k": None, "divergence_alpha": 1.0, "demonstration": "none", **FIXED},
    "advantage_mix": {"name": "advantage_mix", **FIXED},
}


@pytest.mark.parametrize("share", [True, False], ids=["prefixes-shared", "single-rows"])
@pytest.mark.parametrize("case", FIXED_CASES)
def test_another_model_as_the_teacher_equals_the_reference_however_it_is_cut(case: str, share: bool) -> None:
    """Its padding beyond the student's vocabulary has no probability. The teacher cannot always share prefixes."""
    config = run_config(tokens_per_microbatch=4096, **FIXED_CASES[case])
    sequences = sequences_for(config.objective.name)
    engine = PlainEngine(torch.float64)
    engine.teacher, plain = large_teacher(torch.float64), large_teacher(torch.float64)
    assert not share or share_prefixes(engine.teacher)
    plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight[:VOCABULARY], requires_grad=False)
    old = shifted(old_logprobs(engine, sequences, config))
    expected, _ = reference.minibatch_loss(engine.student, plain, sequences, old, config)
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in engine.student.named_parameters()}
    engine.student.zero_grad()
    for budget in (20, 4096):
        order = list(range(len(sequences)))[:: 1 if budget == 20 else -1]
        cut = run_config(tokens_per_microbatch=budget, **FIXED_CASES[case])
        report = run_minibatch(engine, [sequences[i] for i in order], [old[i] for i in order], cut)
        assert report.loss == pytest.approx(expected.item(), rel=1e-6)
        close(engine.gradients, gradients, 1e-6)


@pytest.mark.parametrize("share", [True, False], ids=["prefixes-shared", "single-rows"])
@pytest.mark.parametrize(
    "case",
    INVARIANT,
)
def test_nothing_depends_on_cut_order_chunks_or_sharing(
    case: str, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_config(tokens_per_microbatch=4096, **OBJECTIVES[case])
    sequences = sequences_for(whole.objective.name, number=24)
    single = PlainEngine(share=False)
    old = shifted(old_logprobs(single, sequences, whole))
    base = run_minibatch(single, sequences, old, whole)
    expected = single.gradients
    engine = PlainEngine(share=share)
    for ours, theirs in zip(shifted(old_logprobs(engine, sequences, whole)), old, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for budget, seed, chunk in [(1, 0, None), (30, 1, None), (100, 2, 29 * 3), (4096, 3, 1)]:
        order = list(range(len(sequences)))
        random.Random(seed).shuffle(order)
        with monkeypatch.context() as patch:
            if chunk is not None:
                patch.setattr(forward, "CHUNK_LOGITS", chunk)
            config = run_config(tokens_per_microbatch=budget, **OBJECTIVES[case])
            report = run_minibatch(engine, [sequences[i] for i in order], [old[i] for i in order], config)
        assert report.loss == pytest.approx(base.loss, rel=1e-5)
        close(engine.gradients, expected, 1e-5)
        for name in (
            "num_tokens",
            "num_sdpo_tokens",
            "num_teacher_rollouts",
            "truncated_sum",
            "clipped_sum",
            "bounded_sum",
            "masked_sum",
        ):
            assert report.sums[name] == base.sums[name]
        for name in (
            "policy_entropy_sum",
            "teacher_entropy_sum",
            "divergence_sum",
            "mismatch_kl_sum",
            "reference_kl_sum",
        ):
            assert report.sums[name] == pytest.approx(base.sums[name], rel=1e-5)


def test_each_routed_rollout_counts_once_however_long_it_is() -> None:
    """Of two rollouts whose token losses are the same, the longer one has the same share; an empty one has none."""
    config = run_config(name="grpo", aggregation="sequence")
    engine = PlainEngine(torch.float64)
    short = TrainSequence([1, 2], [3], [-3.0], 0.5, "grpo", None)
    long = TrainSequence([1, 2], [3] * 6, [-3.0] * 6, -0.25, "grpo", None)
    apart = [run_minibatch(engine, [item], old_logprobs(engine, [item], config), config).loss for item in (short, long)]
    empty, left = dataclasses.replace(long, response_ids=[], behaviour_logprobs=[]), dataclasses.replace(long)
    sequences = [short, empty, long, dataclasses.replace(left, route="none")]
    both = run_minibatch(engine, sequences, old_logprobs(engine, sequences, config), config)
    assert both.loss == pytest.approx(sum(apart) / 2, rel=1e-9)
    metrics = step_metrics([both])
    assert metrics["loss"] == pytest.approx(both.loss)
    assert metrics["loss"] == metrics["loss_grpo"]


def test_sequence_means_differ_from_token_means_as_lengths_spread() -> None:
    sequences = sequences_for("srpo")
    engines = {kind: PlainEngine() for kind in ("token", "sequence")}
    for kind, engine in engines.items():
        run_minibatch(engine, sequences, None, run_config(name="srpo", top_k=5, aggregation=kind))
    tokens, means = (torch.cat([value.flatten() for value in engine.gradients.values()]) for engine in engines.values())
    assert torch.nn.functional.cosine_similarity(tokens, means, dim=0) < 0.98


def test_the_dual_clip_bounds_a_token_that_the_policy_came_to_like() -> None:
    """Without it a ratio of e^19 with a negative advantage gives one token a gradient of 4.5e7."""
    sequences = [TrainSequence([1, 2], [3, 4], [-2.0, -2.0], -0.25, "grpo", None)]
    norms = {}
    for bound in (None, 3.0):
        engine = PlainEngine(torch.float64)
        config = run_config(name="grpo", dual_clip=bound)
        now = old_logprobs(engine, sequences, config)[0]
        old = [now - torch.tensor([19.0, 0.0], dtype=now.dtype)]
        sequences = [dataclasses.replace(sequences[0], behaviour_logprobs=old[0].tolist())]
        report = run_minibatch(engine, sequences, old, config)
        norms[bound] = report.gradient_norm
        assert report.sums["bounded_sum"] == (bound is not None)
        assert step_metrics([report])["dual_clip_ratio"] == (0.5 if bound else 0.0)
    assert norms[None] > 1e7
    assert norms[3.0] < 10


@pytest.mark.parametrize("moved", [False, True], ids=["first-update", "later-update"])
@pytest.mark.parametrize("case", ["srpo-icepop", "srpo-masked-responses"])
def test_masked_tokens_are_counted_and_have_no_loss(case: str, moved: bool) -> None:
    config = run_config(**OBJECTIVES[case])
    engine = PlainEngine(torch.float64)
    sequences = [item for item in sequences_for("srpo") if item.response_ids and item.route != "none"]
    now = old_logprobs(engine, sequences, config)
    old = shifted(now) if moved else now
    low, high = config.objective.engine_mask_low, config.objective.engine_mask_high
    expected = 0
    for item, row in zip(sequences, old, strict=True):
        log_ratio = row - torch.tensor(item.behaviour_logprobs, dtype=row.dtype)
        if config.objective.engine_mask == "sequence":
            log_ratio = log_ratio.mean().expand(len(row))
        expected += int(((log_ratio.exp() < low) | (log_ratio.exp() > high)).sum())

    report = run_minibatch(engine, sequences, old if moved else None, config)

    assert report.sums["masked_sum"] == expected
    assert 0 < expected < report.sums["num_tokens"]
    assert step_metrics([report])["engine_masked_ratio"] == expected / report.sums["num_tokens"]


def test_cispo_keeps_the_gradient_of_tokens_that_the_clip_would_stop() -> None:
    sequences = [TrainSequence([1, 2], [3], [-1.0], 0.5, "grpo", None)]
    norms = {}
    for surrogate in ("ppo", "cispo"):
        engine = PlainEngine(torch.float64)
        config = run_config(name="grpo", surrogate=surrogate)
        old = [old_logprobs(engine, sequences, config)[0] - 1.0]
        report = run_minibatch(engine, sequences, old, config)
        assert report.sums["clipped_sum"] == 1
        norms[surrogate] = report.gradient_norm
    assert norms["ppo"] == 0.0
    assert norms["cispo"] > 0.1


def test_rlsd_without_the_teachers_share_is_grpo() -> None:
    sequences = sequences_for("rlsd")
    rlsd, grpo = PlainEngine(torch.float64), PlainEngine(torch.float64)
    run_minibatch(rlsd, sequences, None, run_config(name="rlsd", rlsd_lambda=0.0))
    bare = [dataclasses.replace(item, teacher_prompt_ids=None) for item in sequences]
    run_minibatch(grpo, bare, None, run_config(name="grpo"))
    close(rlsd.gradients, grpo.gradients, 1e-6)


def test_ratios_by_sequence_are_gspo_itself_where_the_engine_agrees() -> None:
    config = run_config(tokens_per_microbatch=40, name="grpo", ratio="sequence", clip_low=0.05, clip_high=0.1)
    engine = PlainEngine(torch.float64)
    sequences = [item for item in sequences_for("grpo") if item.response_ids]
    old = shifted(old_logprobs(engine, sequences, config))
    sequences = [
        dataclasses.replace(item, behaviour_logprobs=row.tolist()) for item, row in zip(sequences, old, strict=True)
    ]
    total = torch.zeros((), dtype=torch.float64)
    for item, row in zip(sequences, old, strict=True):
        logits = reference.response_logits(engine.student, item.prompt_ids, item.response_ids)
        now = [reference.log_softmax(line)[token] for line, token in zip(logits, item.response_ids, strict=True)]
        total = total + reference.gspo_loss(now, row.tolist(), item.advantage, config.objective)
    expected = total / sum(len(item.response_ids) for item in sequences)
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in engine.student.named_parameters()}
    engine.student.zero_grad()

    report = run_minibatch(engine, sequences, old, config)

    assert report.loss == pytest.approx(expected.item(), rel=1e-6)
    assert 0 < report.sums["clipped_sum"] < report.sums["num_tokens"]
    close(engine.gradients, gradients, 1e-6)


def test_the_divergence_from_oneself_is_zero_and_sequences_without_advantage_feel_it() -> None:
    config = run_config(name="grpo", reference_kl_coefficient=0.3)
    sequences = [dataclasses.replace(item, advantage=0.0) for item in sequences_for("grpo")]
    engine = PlainEngine()
    assert step_metrics([run_minibatch(engine, sequences, None, config)])["reference_kl_nats"] > 0.01
    assert any(float(value.abs().max()) > 0 for value in engine.gradients.values())
    engine.reference = engine.student
    assert run_minibatch(engine, sequences, None, config).loss == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("case", ["srpo-gspo", "srpo-gspo-kl"])
def test_without_pi_old_the_student_itself_is_used(case: str) -> None:
    config = run_config(**OBJECTIVES[case])
    sequences = sequences_for("srpo")
    engine = PlainEngine()
    given = run_minibatch(engine, sequences, old_logprobs(engine, sequences, config), config)
    expected = engine.gradients
    own = run_minibatch(engine, sequences, None, config)
    assert own.loss == pytest.approx(given.loss, rel=1e-5)
    close(engine.gradients, expected, 1e-5)


def test_weights_average_one_over_the_minibatch_and_metrics_have_known_names() -> None:
    config = run_config(tokens_per_microbatch=20, **OBJECTIVES["srpo"])
    engine = PlainEngine()
    reports = [run_minibatch(engine, sequences_for("srpo", seed), None, config) for seed in (3, 4)]
    for report in reports:
        assert report.sums["weight_sum"] == pytest.approx(report.sums["num_sdpo_tokens"], rel=1e-6)
        assert sum(report.weight_counts) == report.sums["num_sdpo_tokens"]
    metrics = step_metrics(reports)
    assert metrics.keys() <= STEP_METRICS.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["loss"] == pytest.approx(metrics["loss_grpo"] + metrics["loss_sdpo"])
    assert sum(weight_histogram(reports).counts) == sum(report.sums["num_sdpo_tokens"] for report in reports)


@pytest.mark.parametrize(
    "sequences",
    [
        [],
        [TrainSequence([1], [], [], 0.3, "grpo", None)],
        [TrainSequence([1], [2, 3], [-1.0, -1.0], 0.3, "none", None)],
        [TrainSequence([1, 2], [3], [-1.0], 0.0, "grpo", None)],
    ],
    ids=["no-sequence", "empty-response", "none-routed", "no-signal"],
)
def test_a_minibatch_without_signal_steps_with_zero_gradient(sequences: list[TrainSequence]) -> None:
    engine = PlainEngine()
    report = run_minibatch(engine, sequences, None, run_config(name="srpo"))
    assert report.loss == 0.0
    assert engine.num_backward == 1
    assert all(float(value.abs().max()) == 0.0 for value in engine.gradients.values())


def test_weights_normalised_per_micro_batch_would_show() -> None:
    """One of three faults of an independent SRPO: it lets a confident micro-batch count no more than an unsure one."""
    config = run_config(tokens_per_microbatch=1, name="srpo", top_k=5, beta=1.0)
    engine = PlainEngine(torch.float64)
    sequences = [item for item in sequences_for("srpo") if item.response_ids and item.route != "none"]
    alone = [reference.minibatch_loss(engine.student, engine.teacher, [item], None, config)[0] for item in sequences]
    lengths = [len(item.response_ids) for item in sequences]
    faulty = sum(float(loss.detach()) * length for loss, length in zip(alone, lengths, strict=True)) / sum(lengths)
    expected, _ = reference.minibatch_loss(engine.student, engine.teacher, sequences, None, config)

    report = run_minibatch(engine, sequences, None, config)

    assert engine.num_backward == len(sequences), "each goes alone"
    assert report.loss == pytest.approx(expected.item(), rel=1e-6)
    assert report.loss != pytest.approx(faulty, rel=1e-3)


def test_only_the_last_backward_is_marked_last() -> None:
    engine = PlainEngine()
    run_minibatch(engine, sequences_for("srpo"), None, run_config(tokens_per_microbatch=20, name="srpo"))
    assert engine.lasts == [False] * (len(engine.lasts) - 1) + [True]


def test_one_token_of_each_branch_shares_the_denominator() -> None:
    sequences = [
        TrainSequence([1, 2], [3], [-3.0], 0.5, "grpo", None),
        TrainSequence([1, 2], [4], [-3.0], -0.5, "sdpo", [1, 2, 3]),
    ]
    config = run_config(name="srpo", top_k=4)
    engine = PlainEngine(torch.float64)
    expected, _ = reference.minibatch_loss(engine.student, engine.teacher, sequences, None, config)
    report = run_minibatch(engine, sequences, None, config)
    assert report.loss == pytest.approx(expected.item(), rel=1e-6)
    assert report.sums["num_tokens"] == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_behaviour_logprobs_are_rejected_by_name(bad: float) -> None:
    sequences = sequences_for("srpo")
    broken = next(i for i, item in enumerate(sequences) if item.response_ids)
    item = sequences[broken]
    sequences[broken] = dataclasses.replace(item, behaviour_logprobs=[bad, *item.behaviour_logprobs[1:]])
    with pytest.raises(NonFiniteError, match="behaviour"):
        run_minibatch(PlainEngine(), sequences, None, run_config(name="srpo"))


@pytest.mark.parametrize(("model", "name"), [("student", "logprobs"), ("teacher", "teacher_entropy")])
def test_a_broken_model_is_rejected_by_name_before_the_step(model: str, name: str) -> None:
    engine = PlainEngine()
    with torch.no_grad():
        getattr(engine, model).model.norm.weight[0] = math.nan
    with pytest.raises(NonFiniteError) as caught:
        run_minibatch(engine, sequences_for("srpo"), None, run_config(name="srpo", beta=0.0))
    assert caught.value.field == name
    assert engine.gradients == {}


@pytest.mark.parametrize(
    "sequence",
    [
        TrainSequence([], [1], [-1.0], 0.1, "grpo", None),
        TrainSequence([1], [1], [], 0.1, "grpo", None),
        TrainSequence([1], [1], [-1.0], 0.1, "sdpo", None),
        TrainSequence([1], [1], [-1.0], 0.1, "sdpo", []),
    ],
)
def test_inconsistent_sequences_are_rejected(sequence: TrainSequence) -> None:
    with pytest.raises(TurnoutError, match="Sequence 0"):
        run_minibatch(PlainEngine(), [sequence], None, run_config(name="srpo"))


def test_sequences_without_teacher_get_no_teacher_pass() -> None:
    engine = PlainEngine()
    engine.teacher = None
    report = run_minibatch(engine, sequences_for("grpo"), None, run_config(name="grpo"))
    assert report.sums["num_teacher_rollouts"] == 0
    assert step_metrics([report])["teacher_entropy_nats"] == 0.0

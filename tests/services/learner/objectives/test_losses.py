"""Divergence, entropy, weights, ratios and token losses against the reference; gradients by gradcheck."""

import dataclasses
import math
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.contracts.objectives.base import Standing
from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.run_config import ObjectiveSection
from services.learner.objectives.terms.divergence import generalised_divergence, log_tail
from services.learner.objectives.terms.entropy import entropy_nats
from services.learner.objectives.terms.finite import NonFiniteError, require_finite
from services.learner.objectives.terms.ratios import (
    engine_correction,
    mismatch_kl,
    policy_ratio,
    reference_kl,
    sequence_mean,
    sequence_ratio,
)
from services.learner.objectives.terms.surrogate import clipped_surrogate, is_clipped
from services.learner.objectives.terms.weights import dynamic_weights
from services.learner.packing.sequence import TrainSequence
from services.learner.update.layout import lay_out
from services.learner.update.logit_statistics import cut_fixed, cut_student
from services.learner.update.token_statistics import TokenStatistics
from services.learner.update.tokens import TeacherStates, Tokens
from tests.services.learner.objectives import reference

ALPHAS = [0.0, 0.2, 0.5, 0.9, 1.0]
# Distinct, so that the top K is the same set of tokens in any dtype.
LOGITS = st.lists(st.integers(-3000, 3000), min_size=9, max_size=9, unique=True).map(lambda row: [x / 100 for x in row])
SEEDS = st.integers(0, 2**31)


def random_logits(seed: int, rows: int = 4, vocabulary: int = 11, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)


def cut_divergence(student: Tensor, teacher: Tensor, top_k: int, alpha: float) -> Tensor:
    targets = torch.zeros(len(student), dtype=torch.int64)
    mine = cut_student(student, targets, top_k)
    return generalised_divergence(mine.buckets, cut_fixed(teacher, targets, mine.chosen).buckets, alpha)


def same(values: Tensor) -> Tensor:
    return values


@settings(max_examples=40, deadline=None)
@given(LOGITS, LOGITS, st.sampled_from(ALPHAS), st.integers(1, 8))
def test_the_cut_divergence_equals_the_reference(p: list[float], q: list[float], alpha: float, top_k: int) -> None:
    student, teacher = torch.tensor([p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)
    found = cut_divergence(student, teacher, top_k, alpha).item()
    expected = reference.divergence(*reference.buckets(student[0], teacher[0], top_k), alpha)
    assert found == pytest.approx(expected.item(), abs=1e-9)
    assert found >= -1e-12
    single = cut_divergence(student.float(), teacher.float(), top_k, alpha).item()
    assert single == pytest.approx(found, rel=1e-3, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(LOGITS, LOGITS)
def test_jensen_shannon_is_symmetric_and_bounded(p: list[float], q: list[float]) -> None:
    left, right = (torch.tensor([x], dtype=torch.float64).log_softmax(-1) for x in (p, q))
    there, back = generalised_divergence(left, right, 0.5).item(), generalised_divergence(right, left, 0.5).item()
    assert there == pytest.approx(back, abs=1e-12)
    assert -1e-12 <= there <= math.log(2) + 1e-12
    assert generalised_divergence(left, left, 0.5).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.0] * 6, [0.0] * 6),
        ([200.0] + [-200.0] * 5, [200.0] + [-200.0] * 5),
        ([200.0] + [-200.0] * 5, [-200.0] * 5 + [200.0]),
        ([200.0] + [-200.0] * 5, [0.0] * 6),
        ([60.0, 60.0, -60.0, -60.0, -60.0, -60.0], [-60.0] * 5 + [60.0]),
    ],
    ids=["equal", "equal-one-hot", "opposite-one-hot", "one-hot-and-flat", "tail-zero"],
)
def test_extreme_distributions_have_finite_values_and_gradients(
    p: list[float], q: list[float], alpha: float, dtype: torch.dtype
) -> None:
    student = torch.tensor([p], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([q], dtype=dtype)
    for top_k in (1, 2, 5):
        value = cut_divergence(student, teacher, top_k, alpha)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
        if p == q:
            assert value.item() == pytest.approx(0.0, abs=1e-6)
        student.grad = None


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("top_k", [2, 5, 8, None])
def test_tokens_that_a_model_rules_out_change_nothing(alpha: float, top_k: int | None) -> None:
    """Logits of -inf at the end, as for a padded vocabulary, against the reference on the real vocabulary."""
    ruled_out = torch.full((4, 4), -math.inf, dtype=torch.float64)
    real = random_logits(21, 4, 7).requires_grad_()
    teacher = random_logits(22, 4, 7)
    student = torch.cat([real.detach(), ruled_out], -1).requires_grad_()
    wide = torch.cat([teacher, ruled_out], -1)
    if top_k is None:
        found = generalised_divergence(student.log_softmax(-1), wide.log_softmax(-1), alpha)
    else:
        found = cut_divergence(student, wide, top_k, alpha)
    expected = [reference.divergence(*reference.buckets(real[i], teacher[i], top_k), alpha) for i in range(4)]
    assert found.tolist() == pytest.approx([value.item() for value in expected], abs=1e-12)
    (of_real,) = torch.autograd.grad(sum(expected), real)
    (of_wide,) = torch.autograd.grad(found.sum(), student)
    assert torch.allclose(of_wide[:, :7], of_real, atol=1e-12)
    assert of_wide[:, 7:].abs().max() < 1e-300


def test_entropy_and_logprobs_of_a_distribution_that_rules_tokens_out() -> None:
    real, targets = random_logits(23), torch.tensor([0, 3, 10, 5])
    for floor in (-math.inf, torch.finfo(torch.float64).min):
        wide = torch.cat([real, torch.full((4, 5), floor, dtype=torch.float64)], -1).requires_grad_()
        cut = cut_student(wide, targets, 3)
        for row in range(4):
            assert cut.entropy[row].item() == pytest.approx(reference.entropy(real[row]).item(), abs=1e-12)
            assert cut.logprobs[row].item() == pytest.approx(reference.log_softmax(real[row])[targets[row]].item())
        assert entropy_nats(wide).tolist() == pytest.approx(cut.entropy.tolist(), abs=1e-12)
    assert entropy_nats(torch.tensor([-math.inf, 0.0])).item() == 0.0
    assert math.isnan(entropy_nats(torch.tensor([math.nan, 0.0])).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_probability_on_one_side_alone_stays_finite(alpha: float, dtype: torch.dtype) -> None:
    """The divergence at an end of the mixture is infinite there; Jensen-Shannon's equals the reference."""
    p, q = [1.0, 0.5, -math.inf, 0.0], [-math.inf, 0.5, 1.0, 0.0]
    for top_k in (1, 2, 3, None):
        student = torch.tensor([p], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([q], dtype=dtype)
        if top_k is None:
            value = generalised_divergence(student.log_softmax(-1), teacher.log_softmax(-1), alpha)
        else:
            value = cut_divergence(student, teacher, top_k, alpha)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()
        assert gradient.sum().item() == pytest.approx(0.0, abs=1e-5 * float(gradient.abs().max()))
        if 0.0 < alpha < 1.0 and top_k is None:
            both = [torch.tensor(row, dtype=torch.float64).softmax(-1).tolist() for row in (p, q)]
            expected = sum(
                (1 - alpha) * (a * math.log(a / ((1 - alpha) * a + alpha * b)) if a else 0.0)
                + alpha * (b * math.log(b / ((1 - alpha) * a + alpha * b)) if b else 0.0)
                for a, b in zip(*both, strict=True)
            )
            assert value.item() == pytest.approx(expected, rel=1e-5)


def test_a_tail_below_rounding_keeps_its_value() -> None:
    logits = torch.tensor([[40.0, 0.0, 0.0]])
    buckets = cut_student(logits, torch.tensor([0]), 1).buckets
    assert buckets[0, 1].item() == pytest.approx(math.log(2) - 40.0, rel=1e-5)
    assert log_tail(torch.zeros(1)).item() > -100


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients_of_the_cut(alpha: float) -> None:
    student, teacher = random_logits(1).requires_grad_(), random_logits(2)
    for top_k in (1, 4, 10):
        assert torch.autograd.gradcheck(lambda x, k=top_k: cut_divergence(x, teacher, k, alpha), (student,))
    full = teacher.log_softmax(-1)
    assert torch.autograd.gradcheck(lambda x: generalised_divergence(x.log_softmax(-1), full, alpha), (student,))


def test_the_cut_measures_logprobs_and_entropy() -> None:
    logits = random_logits(3).requires_grad_()
    targets = torch.tensor([0, 3, 10, 5])
    for top_k in (0, 3):
        cut = cut_student(logits, targets, top_k)
        for row in range(4):
            assert cut.logprobs[row].item() == pytest.approx(reference.log_softmax(logits[row])[targets[row]].item())
            assert cut.entropy[row].item() == pytest.approx(reference.entropy(logits[row]).item())
        assert not cut.entropy.requires_grad
        assert torch.autograd.gradcheck(lambda x, k=top_k: cut_student(x, targets, k).logprobs, (logits,))
    assert torch.allclose(entropy_nats(logits), cut.entropy)
    assert entropy_nats(torch.tensor([1000.0, -1000.0])).item() == 0.0
    assert entropy_nats(torch.zeros(8)).item() == pytest.approx(math.log(8))


@settings(deadline=None)
@given(st.lists(st.floats(0, 12), min_size=1, max_size=40), st.floats(0, 200))
def test_weights_average_one_and_follow_the_equation(entropies: list[float], beta: float) -> None:
    values = torch.tensor(entropies, dtype=torch.float64)
    weights = dynamic_weights(values, beta, same, same)
    assert weights.mean().item() == pytest.approx(1.0, rel=1e-9)
    if beta * (max(entropies) - min(entropies)) < 300 and beta * min(entropies) < 300:
        raw = [math.exp(-beta * entropy) for entropy in entropies]
        mean = sum(raw) / len(raw)
        assert weights.tolist() == pytest.approx([value / mean for value in raw], rel=1e-9)
    assert dynamic_weights(values, 0.0, same, same).tolist() == [1.0] * len(entropies)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 12), st.sampled_from([0.0, 0.1, 0.5, 20.0])), min_size=1, max_size=40),
    st.floats(0, 200),
    st.sampled_from([0.0, 0.3]),
)
def test_scaled_weights_average_one_above_their_floor(
    rows: list[tuple[float, float]], beta: float, floor: float
) -> None:
    entropies, scales = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    weights = dynamic_weights(entropies, beta, same, same, scales=scales, floor=floor)
    if not bool(scales.any()):
        assert weights.tolist() == [floor] * len(rows)
        return
    assert weights.mean().item() == pytest.approx(1.0, rel=1e-9)
    assert weights.min().item() >= floor
    assert torch.all(weights[scales == 0] == floor)


def test_a_rank_without_tokens_takes_part_in_the_reductions() -> None:
    calls = []

    def count(values: Tensor) -> Tensor:
        calls.append(values.clone())
        return values

    assert dynamic_weights(torch.zeros(0), 1.0, count, lambda values: torch.zeros_like(values)).numel() == 0
    assert len(calls) == 1


BRANCHES = sorted(
    {
        (name, kind.route(Standing(correct, informed, 0.5), ObjectiveSection(name=name)))
        for name, kind in OBJECTIVES.items()
        for correct, informed in product((False, True), repeat=2)
    }
    - {("sdpo", "none")}
)


class Teacher(TeacherStates):
    """Whose logits are given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits, same, 1.0)


def terms(
    logits: Tensor,
    branch: Literal["grpo", "sdpo"],
    section: ObjectiveSection,
    old: Tensor,
    behaviour: Tensor,
    advantage: float = 0.0,
    teacher: Tensor | None = None,
) -> Tokens:
    """For one response that samples tokens 0, 1, 2, ... in turn, all of which the teacher allows."""
    num_tokens = len(logits)
    taught = None if teacher is None else [1]
    sequence = TrainSequence([1], list(range(num_tokens)), behaviour.tolist(), advantage, branch, taught)
    layout = lay_out([sequence], [old], torch.device("cpu"), torch.float64, section)
    asked = None if teacher is None else Teacher(teacher)
    return Tokens(logits, torch.arange(num_tokens), branch, layout, section, asked, np.arange(num_tokens))


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([0.5, 2.0]), st.sampled_from([-0.7, 0.4]))
def test_token_losses_equal_the_reference(seed: int, cap: float, advantage: float) -> None:
    logits, teacher = random_logits(seed, 6), random_logits(seed + 1, 6)
    old, behaviour = (-1 + random_logits(seed + 2, 2, 6, 0.5)).unbind()
    found = {}
    for name, branch in (("grpo", "grpo"), ("sdpo", "sdpo"), ("advantage_mix", "grpo")):
        section = ObjectiveSection(name=name, importance_weight_cap=cap, top_k=4)
        made = terms(logits, branch, section, old, behaviour, advantage, teacher)  # type: ignore[arg-type]
        found[name] = OBJECTIVES[name].token_loss(branch, made, section)  # type: ignore[arg-type]
    for t in range(6):
        before, mu = old[t].item(), behaviour[t].item()
        now, theirs = (reference.log_softmax(rows[t])[t].item() for rows in (logits, teacher))
        divergence = reference.divergence(*reference.buckets(logits[t], teacher[t], 4), 0.5)
        mixed = 0.9 * advantage + 0.1 * (theirs - now)
        tensor = torch.tensor(now)
        expected = {
            "grpo": reference.grpo_loss(tensor, before, mu, advantage, section),
            "sdpo": reference.sdpo_loss(divergence, tensor, before, mu, section),
            "advantage_mix": reference.grpo_loss(tensor, before, mu, mixed, section),
        }
        for name, value in expected.items():
            assert found[name][t].item() == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize(("name", "branch"), BRANCHES)
def test_gradients_of_the_token_losses(name: str, branch: Literal["grpo", "sdpo"]) -> None:
    """Terms without gradient are held fixed for the numerical gradient."""
    section = ObjectiveSection(name=name, top_k=4)
    logits, teacher = random_logits(11).requires_grad_(), random_logits(12)
    old, behaviour = (-1 + random_logits(13, 2, 4, 0.4)).unbind()
    fixed = terms(logits.detach(), branch, section, old, behaviour, 0.4, teacher)

    def loss(values: Tensor) -> Tensor:
        made = terms(values, branch, section, old, behaviour, 0.4, teacher)
        made.capped_ratio, made.teacher_gap = fixed.capped_ratio, fixed.teacher_gap  # type: ignore[method-assign]
        return OBJECTIVES[name].token_loss(branch, made, section)

    assert torch.autograd.gradcheck(loss, (logits,))


def test_a_missing_or_unknown_statistic_is_an_error() -> None:
    section = ObjectiveSection()
    behaviour = torch.zeros(2, dtype=torch.float64)
    found = terms(random_logits(5, 2), "grpo", section, behaviour, behaviour, 0.5).statistics(torch.ones(2))
    build: Any = TokenStatistics  # mypy finds each of these too
    values = {item.name: getattr(found, item.name) for item in dataclasses.fields(found)}
    for name in values:
        with pytest.raises(TypeError, match=name):
            build(**{key: value for key, value in values.items() if key != name})
    with pytest.raises(TypeError, match="unknown"):
        build(**values, unknown=values["loss"])
    with pytest.raises(TypeError, match="positional"):
        build(*values.values())
    kept = TokenStatistics.zeros(4, torch.float32, torch.device("cpu"))
    kept.write(torch.tensor([3, 1]), TokenStatistics(**values))
    assert kept.loss.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert kept.sums()["policy_entropy_sum"].item() == pytest.approx(found.entropy.sum().item(), rel=1e-6)


def test_clipping_by_hand() -> None:
    ratio = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantage = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0])
    assert clipped_surrogate(ratio, advantage, 0.2, 0.28).tolist() == pytest.approx([-1.0, -1.28, 1.5, -0.5, 0.8])
    assert is_clipped(ratio, advantage, 0.2, 0.28).tolist() == [False, True, False, False, True]


def test_ratios_by_hand() -> None:
    logprobs, old = torch.tensor([-1.0, -1.0, 0.0]), torch.tensor([-1.0, -3.0, -500.0])
    assert policy_ratio(logprobs, old).tolist() == pytest.approx([1.0, math.exp(2), math.exp(20)])
    assert engine_correction(logprobs, old, 2.0).tolist() == pytest.approx([1.0, 2.0, 2.0])
    assert mismatch_kl(logprobs, old)[:2].tolist() == pytest.approx([0.0, math.exp(2) - 3])


def test_sequence_ratios_by_hand() -> None:
    log_ratio, owner = torch.tensor([0.2, -1.0, 0.4, 3.0]), torch.tensor([2, 5, 2, 5])
    mean = sequence_mean(log_ratio, owner, 6)
    assert mean.tolist() == pytest.approx([0.3, 1.0, 0.3, 1.0])
    assert sequence_mean(log_ratio[:0], owner[:0], 0).tolist() == []
    logprobs = torch.tensor([-4.0, -2.0, -3.0, -1.0], requires_grad=True)
    ratio = sequence_ratio(logprobs, mean)
    assert ratio.tolist() == pytest.approx(mean.exp().tolist())
    ratio.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx(mean.exp().tolist())


def test_reference_kl_equals_the_reference() -> None:
    logprobs, initial = (-1 + random_logits(13, 2, 20, 0.6)).unbind()
    found = reference_kl(logprobs, initial)
    assert found.tolist() == pytest.approx([float(reference.k3(a, b)) for a, b in zip(logprobs, initial, strict=True)])
    assert float(found.min()) >= 0
    assert torch.autograd.gradcheck(lambda x: reference_kl(x, initial), (logprobs.clone().requires_grad_(),))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_rejected_by_name(bad: float) -> None:
    require_finite("logprobs", torch.zeros(3))
    with pytest.raises(NonFiniteError, match="logprobs") as caught:
        require_finite("logprobs", torch.tensor([0.0, bad]))
    assert caught.value.field == "logprobs"

"""Log-probabilities of the response tokens under a model as it is: passes without gradient, logits in chunks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from services.contracts.run_config import ObjectiveSection, RunConfig
from services.learner.model.forward import Project, chunk_slices, real_logits, run_with_job, select, vocabulary_size
from services.learner.model.tree_attention import shares_prefixes
from services.learner.objectives.terms.ratios import in_band, sequence_mean
from services.learner.packing.rows import PackedBatch
from services.learner.packing.sequence import TrainSequence
from services.learner.update.engine import Engine, numbers, real_type
from services.learner.update.layout import Layout, lay_out, visits
from services.learner.update.logit_statistics import cut_fixed
from services.learner.update.sampled import Sampled


def old_logprobs(engine: Engine, sequences: Sequence[TrainSequence], config: RunConfig) -> list[Tensor]:
    """log pi_old of every response token under the student as it is now.

    Call it before the first update of a step, for the sequences of the later mini-batches; the first mini-batch needs
    none (`run_minibatch` with `old=None`).

    Returns:
        One tensor [num response tokens] per sequence, float32 on the engine's device; zeros if the route is `none`.
    """
    layout = lay_out(sequences, None, engine.device, real_type(engine))
    budget, share = config.training.tokens_per_microbatch, shares_prefixes(engine.student)
    plan = visits(layout.rows, sequences, budget, share=share)
    rounds = int(engine.all_reduce_max(numbers(engine, [len(plan.batches)])).item())
    scored = torch.zeros(layout.num_tokens, dtype=layout.behaviour.dtype, device=engine.device)
    for number in range(rounds):
        batch, _ = plan.load(number, sequences, layout, engine.device)
        score(engine.student, batch, layout, scored, Sampled.of(config.rollout))
    return [
        scored[layout.spans[row]].clone()
        if row in layout.spans
        else torch.zeros(len(item.response_ids), dtype=scored.dtype, device=engine.device)
        for row, item in enumerate(sequences)
    ]


@torch.no_grad()
def score(model: nn.Module, batch: PackedBatch, layout: Layout, into: Tensor, sampled: Sampled) -> None:
    """One pass of `model`: write its log-probabilities of the batch's response tokens into `into`, [T]."""

    def job(project: Project, hidden: Tensor) -> Tensor:
        states = select(hidden, batch.positions)
        write_logprobs(project, states, batch.tokens, layout, into, sampled, vocabulary_size(model))
        return hidden.new_zeros(())

    run_with_job(model, batch, job)


def write_logprobs(
    project: Project, states: Tensor, tokens: Tensor, layout: Layout, into: Tensor, sampled: Sampled, width: int
) -> None:
    """Write the log-probabilities of `tokens` [n], whose hidden states are `states` [n, hidden], into `into` [T].

    `width` is the vocabulary's size, which decides on the chunks.
    """
    for chunk in chunk_slices(0, len(tokens), width):
        logits, where = real_logits(project, states[chunk], sampled.temperature), tokens[chunk]
        if sampled.is_plain:
            found = cut_fixed(logits, layout.targets[where]).logprobs
        else:
            found = sampled.logprobs(logits, layout, where)
        into[where] = found.to(into.dtype)


@torch.no_grad()
def write_sequence_mask(
    project: Project,
    states: Tensor,
    tokens: Tensor,
    layout: Layout,
    section: ObjectiveSection,
    sampled: Sampled,
    width: int,
) -> None:
    """Set `layout.kept` at `tokens`, those of whole responses, by the geometric mean of pi_old / mu (`engine_mask:
    sequence`). Where pi_old is the student itself, that costs a pass of the head. Arguments as `write_logprobs`."""
    if layout.kept is None:
        return
    old = layout.old
    if old is None:
        old = torch.zeros_like(layout.behaviour)
        write_logprobs(project, states, tokens, layout, old, sampled, width)
    mean = sequence_mean(old[tokens] - layout.behaviour[tokens], layout.owner[tokens], len(layout.rows))
    layout.kept[tokens] = in_band(mean, section.engine_mask_low, section.engine_mask_high)


@torch.no_grad()
def write_sequence_ratios(
    project: Project, states: Tensor, tokens: Tensor, layout: Layout, sampled: Sampled, width: int
) -> None:
    """Set `layout.sequence` at `tokens`, those of whole responses. Ratios by sequence must be known before the first
    chunk's loss is differentiated. Arguments as `write_logprobs`."""
    if layout.sequence is None or layout.old is None:
        return
    now = torch.zeros_like(layout.old)
    write_logprobs(project, states, tokens, layout, now, sampled, width)
    layout.sequence[tokens] = sequence_mean(now[tokens] - layout.old[tokens], layout.owner[tokens], len(layout.rows))

"""One optimizer update: teacher entropies, weights, student passes, step. Exact for any cut and any number of ranks.

Order of work on every rank (docs/algorithm.md, "From sequences to an update"):

1. lay the routed response tokens end to end; agree with the other ranks on the denominator and on how many passes of
   each kind everybody runs (ranks with fewer run dummies, whose loss is tied in with factor 0);
2. teacher passes over the tokens that need one: hidden states are kept, and entropies, so that the dynamic weights
   average 1 over the WHOLE mini-batch before the first gradient; passes of the initial model, if asked for;
3. student passes without gradient for sequences whose loss cannot have one (GRPO with advantage 0): numbers only;
4. student passes with gradient, each divided by the global denominator, so that they add up to the objective;
5. sums over ranks; numbers that are not finite are refused by name, on every rank, before the weights change;
6. the optimizer step.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from services.contracts.objectives.base import Branch, Weighting
from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.run_config import RunConfig
from services.learner.model.forward import (
    Project,
    check_model,
    chunk_slices,
    chunked_loss,
    output_head,
    real_logits,
    run_with_job,
    select,
    teacher_projection,
    vocabulary_size,
)
from services.learner.model.tree_attention import shares_prefixes
from services.learner.objectives.terms.entropy import entropy_nats
from services.learner.objectives.terms.finite import require_finite
from services.learner.objectives.terms.weights import dynamic_weights
from services.learner.packing.rows import PackedBatch
from services.learner.packing.sequence import TrainSequence
from services.learner.update.engine import Engine, clock, numbers, real_type
from services.learner.update.layout import Visits, lay_out, visits
from services.learner.update.logit_statistics import cut_fixed
from services.learner.update.sampled import Sampled
from services.learner.update.scoring import score, write_sequence_mask, write_sequence_ratios
from services.learner.update.statistics import MinibatchReport, count_weights, measure, take_details
from services.learner.update.tokens import TeacherStates, Tokens

Pass = Literal["teacher", "wrong", "reference", "silent", "train"]
"""`wrong`: of the teacher, reading a wrong hint; `silent`: of the student, without gradient; `train`: with it."""


def run_minibatch(
    engine: Engine,
    sequences: Sequence[TrainSequence],
    old: Sequence[Tensor] | None,
    config: RunConfig,
    details: Collection[int] = (),
) -> MinibatchReport:
    """One optimizer update on this rank's sequences of one mini-batch. All ranks call it together.

    Args:
        sequences: this rank's share; may be empty.
        old: `scoring.old_logprobs` of these sequences, or None if the student has not been updated since pi_old was
            fixed (the first mini-batch of a step): pi_old is then the student itself and costs no pass. Alike on all
            ranks.
        details: indices into `sequences` whose tokens are wanted one by one in the report.

    Raises:
        NonFiniteError: log-probs, entropies, divergences or losses hold NaN or infinity (on every rank, before the
            weights change); `field` names them.
    """
    return _Update(engine, sequences, old, config).run(details)


class _Update:
    """The work of one `run_minibatch`."""

    def __init__(
        self, engine: Engine, sequences: Sequence[TrainSequence], old: Sequence[Tensor] | None, config: RunConfig
    ) -> None:
        check_model(engine.student)
        self.engine, self.sequences, self.config = engine, sequences, config
        self.section, self.sampled = config.objective, Sampled.of(config.rollout)
        self.temperature = self.sampled.temperature
        self.objective = OBJECTIVES[self.section.name]
        self.keeps_contrast = self.objective.keeps_contrast(self.section)
        longest = config.rollout.max_response_tokens
        self.layout = lay_out(sequences, old, engine.device, real_type(engine), self.section, longest)
        budget = config.training.tokens_per_microbatch
        rows = self.layout.rows
        taught = [row for row in rows if sequences[row].teacher_prompt_ids is not None]
        silent = {row for row in rows if sequences[row].advantage == 0.0} - set(taught)
        referred = [row for row in rows if sequences[row].route == "grpo"] if self.layout.reference is not None else []
        silent -= set(referred)
        plan = partial(visits, sequences=sequences, budget=budget, share=shares_prefixes(engine.student))
        shared = shares_prefixes(engine.student if engine.teacher is None else engine.teacher)
        self.plans: dict[Pass, Visits] = {
            "teacher": plan(taught, reads="solution", share=shared),
            "wrong": plan([row for row in taught if sequences[row].wrong_hint_ids], reads="wrong hint", share=shared),
            "reference": plan(referred),
            "silent": plan([row for row in rows if row in silent]),
            "train": plan([row for row in rows if row not in silent]),
        }
        self.num_taught = len(taught)
        self.num_computed = 0
        self.hidden: Tensor | None = None
        """The teacher's hidden states, [num_teacher_tokens, hidden size]; None before there are any."""
        self.wrong: Tensor | None = None
        """The same with wrong hints."""

    def run(self, details: Collection[int]) -> MinibatchReport:
        started = clock(self.engine)
        rounds = self._agree()
        self._teach(rounds["teacher"], rounds["wrong"])
        self._refer(rounds["reference"])
        taught = clock(self.engine)
        self._train(rounds["silent"], rounds["train"])
        sums, counts = self._gather()
        norm = self.engine.step()
        finished = clock(self.engine)
        return MinibatchReport(
            sums=sums,
            weight_counts=counts,
            gradient_norm=norm,
            seconds_teacher=taught - started,
            seconds_train=finished - taught,
            details=take_details(self.layout, details),
        )

    def _agree(self) -> dict[Pass, int]:
        """The denominators over all ranks; returns how many passes of each kind every rank runs."""
        layout = self.layout
        self.denominator, self.num_taught_tokens = self.engine.all_reduce_sum(
            numbers(self.engine, [layout.denominator, layout.num_teacher_tokens])
        ).tolist()
        mine = numbers(self.engine, [len(plan.batches) for plan in self.plans.values()])
        most = map(int, self.engine.all_reduce_max(mine).tolist())
        rounds = dict(zip(self.plans, most, strict=True))
        # One pass with gradient at least: the engine's step needs a backward before it.
        return rounds | {"train": max(1, rounds["train"])}

    def _load(self, kind: Pass, number: int) -> tuple[PackedBatch, int]:
        """One micro-batch; see `Visits.load`."""
        batch, num_grpo = self.plans[kind].load(number, self.sequences, self.layout, self.engine.device)
        self.num_computed += batch.input_ids.numel()
        return batch, num_grpo

    def _teach(self, rounds: int, wrong: int) -> None:
        """Teacher passes: hidden states, and what the objective's weights need."""
        weighting = self.objective.weighting(self.section)
        if not rounds:
            return
        assert self.engine.teacher is not None, "sequences ask for a teacher pass but the engine has no teacher"
        with torch.no_grad():
            weighs = weighting is not None and weighting.entropy > 0
            for number in range(rounds):
                self._teach_one(number, with_entropy=weighs and not wrong)
            for number in range(wrong):
                self._hint_one(number)
            if weighs and wrong:
                self._measure_entropy()
        if weighting is not None:
            self._weigh(weighting)

    def _weigh(self, weighting: Weighting) -> None:
        """Weights of the tokens routed to SDPO."""
        layout, sdpo = self.layout, self.layout.is_sdpo
        scales = None
        if weighting.position or weighting.by_question:
            scales = (weighting.position * layout.places()[sdpo]).exp()
            if weighting.by_question:
                scales = scales * layout.difficulty[sdpo].double()
        layout.weights[sdpo] = dynamic_weights(
            layout.stats.teacher_entropy[sdpo],
            weighting.entropy,
            self.engine.all_reduce_sum,
            self.engine.all_reduce_max,
            scales=scales,
            floor=weighting.floor,
        )

    def _teach_one(self, number: int, *, with_entropy: bool) -> None:
        engine, layout = self.engine, self.layout
        assert engine.teacher is not None
        batch, _ = self._load("teacher", number)

        def job(project: Project, hidden: Tensor) -> Tensor:
            states = select(hidden, batch.positions)
            if self.hidden is None:
                self.hidden = states.new_zeros((layout.num_teacher_tokens, states.shape[-1]))
            self.hidden[layout.slots[batch.tokens]] = states
            for chunk in chunk_slices(0, len(batch.tokens), vocabulary_size(engine.student)) if with_entropy else ():
                tokens = batch.tokens[chunk]
                logits = real_logits(project, states[chunk], self.temperature, vocabulary_size(engine.student))
                cut = cut_fixed(logits, layout.targets[tokens])
                layout.stats.teacher_entropy[tokens] = cut.entropy.to(layout.behaviour.dtype)
            return hidden.new_zeros(())

        run_with_job(engine.teacher, batch, job)

    def _hint_one(self, number: int) -> None:
        """A teacher pass with wrong hints."""
        engine, layout = self.engine, self.layout
        assert engine.teacher is not None
        batch, _ = self._load("wrong", number)

        def job(project: Project, hidden: Tensor) -> Tensor:
            states = select(hidden, batch.positions)
            if self.wrong is None:
                self.wrong = states.new_zeros((layout.num_teacher_tokens, states.shape[-1]))
            self.wrong[layout.slots[batch.tokens]] = states
            return hidden.new_zeros(())

        run_with_job(engine.teacher, batch, job)

    def _measure_entropy(self) -> None:
        """Of the contrasted teacher, which is not known before both passes."""
        layout = self.layout
        assert self.engine.teacher is not None
        taught = torch.from_numpy(np.flatnonzero(layout.taught)).to(layout.slots.device)
        with teacher_projection(self.engine.teacher) as project:
            states = self._states(project)
            for chunk in chunk_slices(0, len(taught), vocabulary_size(self.engine.student)):
                tokens = taught[chunk]
                entropy = entropy_nats(states.logits(layout.slots[tokens]))
                layout.stats.teacher_entropy[tokens] = entropy.to(layout.behaviour.dtype)

    def _states(self, project: Project) -> TeacherStates:
        """What the teacher passes left; `project` is the teacher's head."""
        assert self.hidden is not None
        strength = None if self.wrong is None else self.section.wrong_hint * self.layout.is_hinted.to(self.hidden.dtype)
        width = vocabulary_size(self.engine.student)
        return TeacherStates(self.hidden, project, self.temperature, width, self.wrong, strength)

    def _refer(self, rounds: int) -> None:
        """Passes of the initial model over the GRPO branch, if its divergence is asked for."""
        for number in range(rounds):
            assert self.engine.reference is not None, "a reference KL is asked for but the engine has no reference"
            assert self.layout.reference is not None
            batch, _ = self._load("reference", number)
            score(self.engine.reference, batch, self.layout, self.layout.reference, Sampled(self.temperature))

    def _train(self, silent: int, train: int) -> None:
        """Student passes: those without gradient, then those with."""
        for number in range(silent):
            with torch.no_grad():
                self._student_pass("silent", number)
        for number in range(train):
            # The graph of one micro-batch is freed before the next one starts.
            self.engine.backward(self._student_pass("train", number), last=number == train - 1)

    def _student_pass(self, kind: Pass, number: int) -> Tensor:
        """The loss of one micro-batch, a scalar."""
        engine, section = self.engine, self.section
        batch, num_grpo = self._load(kind, number)
        with ExitStack() as stack:
            teacher = None
            if self.num_taught_tokens and torch.is_grad_enabled() and engine.teacher is not None:
                project = stack.enter_context(teacher_projection(engine.teacher))
                teacher = None if self.hidden is None else self._states(project)

            def job(project: Project, hidden: Tensor) -> Tensor:
                def chunk_loss(states: Tensor, chunk: slice) -> Tensor:
                    branch: Branch = "grpo" if chunk.start < num_grpo else "sdpo"
                    where = batch.tokens[chunk]
                    # Logits are not named, so that they are gone when the teacher's come.
                    terms = Tokens(
                        real_logits(project, states, self.temperature),
                        where,
                        branch,
                        self.layout,
                        section,
                        teacher,
                        batch.places[chunk],
                        self.sampled,
                    )
                    losses = self.objective.token_loss(branch, terms, section)
                    self.layout.stats.write(where, terms.statistics(losses))
                    if self.layout.shares is not None:
                        losses = losses * self.layout.shares[where]
                    return losses.sum() / max(1.0, self.denominator)

                width = vocabulary_size(engine.student)
                chunks = chunk_slices(0, num_grpo, width) + chunk_slices(num_grpo, len(batch.tokens), width)
                states = select(hidden, batch.positions)
                num_policy = len(batch.tokens) if self.keeps_contrast else num_grpo
                whole = states[:num_policy].detach(), batch.tokens[:num_policy]
                every = states.detach(), batch.tokens
                write_sequence_mask(project, *every, self.layout, section, self.sampled, width)
                if torch.is_grad_enabled():
                    write_sequence_ratios(project, *whole, self.layout, self.sampled, width)
                return chunked_loss(output_head(engine.student), states, chunks, chunk_loss)

            return run_with_job(engine.student, batch, job)

    def _gather(self) -> tuple[dict[str, float], list[int]]:
        """Sums over all ranks and the weights' histogram; refuses what is not finite."""
        layout = self.layout
        routed = [row for row in layout.rows if self.sequences[row].route == "sdpo"]
        sdpo = float(sum(len(self.sequences[row].response_ids) for row in routed))
        needed = sum(plan.num_needed_tokens for plan in self.plans.values())
        counts = {
            "num_tokens": float(layout.num_tokens),
            "denominator": layout.denominator,
            "num_grpo_tokens": layout.num_tokens - sdpo,
            "num_sdpo_tokens": sdpo,
            "num_policy_tokens": layout.num_tokens - (0.0 if self.keeps_contrast else sdpo),
            "num_teacher_tokens": float(layout.num_teacher_tokens),
            "num_teacher_rollouts": float(self.num_taught),
            "num_needed_tokens": float(needed),
            "num_computed_tokens": float(self.num_computed),
        }
        measured = measure(layout, self.config.objective)
        names = [*counts, *measured]
        local = torch.cat([numbers(self.engine, list(counts.values())), torch.stack(list(measured.values()))])
        total = self.engine.all_reduce_sum(torch.cat([local, count_weights(layout)])).cpu()  # waits once, not by number
        values = dict(zip(names, total[: len(names)], strict=True))
        # In the order of cause and effect, so that the first one named is the culprit.
        for name in ("behaviour", "logprobs", "old", "teacher_entropy_sum", "divergence_sum", "reference_kl_sum"):
            require_finite(name.removesuffix("_sum"), values[name])
        require_finite("loss", values["loss_grpo_sum"] + values["loss_sdpo_sum"])
        return {name: float(value) for name, value in values.items()}, list(map(int, total[len(names) :].tolist()))

"""Loss of one chunk of response tokens, by branch: logits in, a scalar with gradient out, statistics on the side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.contracts.run_config import ObjectiveSection
from services.learner.model.forward import Project, real_logits
from services.learner.objectives.advantage_mix import mixed_advantage
from services.learner.objectives.grpo import grpo_token_loss, importance_ratio
from services.learner.objectives.sdpo import sdpo_token_loss
from services.learner.objectives.srpo import joint_objective
from services.learner.objectives.terms.divergence import generalised_divergence
from services.learner.objectives.terms.entropy import entropy_nats
from services.learner.objectives.terms.ratios import reference_kl
from services.learner.objectives.terms.surrogate import is_clipped
from services.learner.update.layout import Layout
from services.learner.update.logit_statistics import Cut, cut_fixed, cut_student


@dataclass(frozen=True, slots=True)
class TeacherStates:
    """The teacher's last hidden states at its response tokens, and its head."""

    hidden: Tensor
    """[num_teacher_tokens, hidden size], in the teacher's type; row = `Layout.slots`."""
    project: Project


@dataclass(frozen=True, slots=True)
class ChunkLosses:
    """Losses of chunks of one mini-batch."""

    layout: Layout
    objective: ObjectiveSection
    temperature: float
    num_routed_tokens: float
    """The denominator: of the whole mini-batch, all ranks."""
    teacher: TeacherStates | None

    def grpo(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """GRPO branch (and advantage mix): logits [n, vocabulary] of tokens [n] -> scalar."""
        layout, objective = self.layout, self.objective
        cut = cut_student(logits, layout.targets[tokens], 0)
        old = self._old(cut.logprobs, tokens)
        advantage, teacher_entropy = layout.advantage[tokens], torch.zeros_like(old)
        if objective.name == "advantage_mix":
            slots = layout.slots[tokens]
            taught = slots >= 0
            teacher_logprobs = torch.zeros_like(old)
            if self.teacher is not None and bool(taught.any()):
                theirs = cut_fixed(self._teacher_logits(slots[taught]), layout.targets[tokens[taught]])
                teacher_logprobs[taught] = theirs.logprobs.to(old.dtype)
                teacher_entropy[taught] = theirs.entropy.to(old.dtype)
            advantage = mixed_advantage(advantage, teacher_logprobs, cut.logprobs, taught, objective.mix_lambda)
        sequence = None if layout.sequence is None else layout.sequence[tokens]
        losses = grpo_token_loss(cut.logprobs, old, layout.behaviour[tokens], advantage, objective, sequence)
        divergence = torch.zeros_like(old)
        if layout.reference is not None:
            divergence = reference_kl(cut.logprobs, layout.reference[tokens])
            losses = losses + objective.reference_kl_coefficient * divergence
        ratio = importance_ratio(cut.logprobs.detach(), old, sequence)
        clipped = is_clipped(ratio, advantage, objective.clip_low, objective.clip_high).to(old.dtype)
        self._record(tokens, cut, old, teacher_entropy, torch.zeros_like(old), losses, clipped, divergence)
        return joint_objective(losses, losses[:0], losses[:0], self.num_routed_tokens)

    def sdpo(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """SDPO branch: logits [n, vocabulary] of tokens [n] -> scalar."""
        layout, objective = self.layout, self.objective
        targets, top_k = layout.targets[tokens], objective.top_k
        if top_k is None or top_k >= logits.shape[-1]:
            cut = cut_student(logits, targets, 0)
            student = logits.log_softmax(-1)
            teacher_logits = self._teacher_logits(layout.slots[tokens])
            teacher, teacher_entropy = teacher_logits.log_softmax(-1), entropy_nats(teacher_logits)
        else:
            cut = cut_student(logits, targets, top_k)
            # Its probabilities are kept for the gradient; the logits need not stand beside the teacher's.
            del logits
            theirs = cut_fixed(self._teacher_logits(layout.slots[tokens]), targets, cut.chosen)
            student, teacher, teacher_entropy = cut.buckets, theirs.buckets, theirs.entropy
        divergence = generalised_divergence(student, teacher.to(student.dtype), objective.divergence_alpha)
        old = self._old(cut.logprobs, tokens)
        losses = sdpo_token_loss(divergence, cut.logprobs, old, layout.behaviour[tokens], objective)
        weights = layout.weights[tokens]
        none = torch.zeros_like(old)
        self._record(tokens, cut, old, teacher_entropy, divergence, weights * losses, none, none)
        return joint_objective(losses[:0], losses, weights, self.num_routed_tokens)

    def _old(self, logprobs: Tensor, tokens: Tensor) -> Tensor:
        old = self.layout.old
        return logprobs.detach() if old is None else old[tokens]

    def _teacher_logits(self, slots: Tensor) -> Tensor:
        assert self.teacher is not None, "a teacher pass precedes every token routed to it"
        with torch.no_grad():
            return real_logits(self.teacher.project, self.teacher.hidden[slots], self.temperature)

    def _record(self, tokens: Tensor, cut: Cut, old: Tensor, *rest: Tensor) -> None:
        stats = self.layout.stats
        columns = (cut.logprobs, old, cut.entropy, *rest)
        stats[:, tokens] = torch.stack([column.detach().to(stats.dtype) for column in columns])

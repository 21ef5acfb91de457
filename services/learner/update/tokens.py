"""The terms that an objective composes its token loss of, for one chunk of response tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.contracts.objectives.base import Branch
from services.contracts.run_config import ObjectiveSection
from services.learner.model.forward import Project, real_logits
from services.learner.objectives.terms.contrast import contrast
from services.learner.objectives.terms.divergence import generalised_divergence
from services.learner.objectives.terms.entropy import entropy_nats
from services.learner.objectives.terms.ratios import (
    MAX_LOG_RATIO,
    engine_correction,
    in_band,
    policy_ratio,
    reference_kl,
    sequence_ratio,
)
from services.learner.objectives.terms.surrogate import cispo, clipped_surrogate, is_bounded, is_clipped
from services.learner.update.layout import Layout
from services.learner.update.logit_statistics import cut_fixed, cut_student
from services.learner.update.sampled import Sampled
from services.learner.update.token_statistics import TokenStatistics

PLAIN: Final = Sampled()


@dataclass(frozen=True, slots=True)
class TeacherStates:
    """The teacher's last hidden states at its response tokens, and its head."""

    hidden: Tensor
    """[num_teacher_tokens, hidden size], in the teacher's type; row = `Layout.slots`."""
    project: Project
    temperature: float
    width: int | None = None
    """Size of the student's vocabulary; None: the teacher's is the same."""
    wrong: Tensor | None = None
    """As `hidden`, after the prompt with a wrong hint; None for no contrast."""
    strength: Tensor | None = None
    """`objective.wrong_hint` of each row, [num_teacher_tokens]; 0 where there is no wrong hint."""

    @torch.no_grad()
    def logits(self, slots: Tensor) -> Tensor:
        """[n] slots -> [n, vocabulary]."""
        logits = real_logits(self.project, self.hidden[slots], self.temperature, self.width)
        if self.wrong is None or self.strength is None:
            return logits
        wrong = real_logits(self.project, self.wrong[slots], self.temperature, self.width)
        return contrast(logits, wrong, self.strength[slots])


class Tokens:
    """`services.contracts.objectives.base.Terms` for n tokens of one branch; all values are [n].

    Terms note what they find for the statistics.
    """

    def __init__(
        self,
        logits: Tensor,
        tokens: Tensor,
        branch: Branch,
        layout: Layout,
        section: ObjectiveSection,
        teacher: TeacherStates | None,
        places: NDArray[np.int64],
        sampled: Sampled = PLAIN,
    ) -> None:
        """`logits` [n, vocabulary] of `tokens` [n] are not kept: the teacher's need their memory. `places` is `tokens`
        in CPU memory. Ratios are of the distribution that was sampled from; divergence, entropy and the comparison with
        teacher and initial model are of whole distributions at its temperature."""
        self._places = places
        self._tokens, self._layout, self._section, self._teacher = tokens, layout, section, teacher
        self._targets = layout.targets[tokens]
        top_k = section.top_k if section.top_k is not None and section.top_k < logits.shape[-1] else None
        compares = branch == "sdpo"
        self._cut = cut_student(logits, self._targets, top_k if compares and top_k else 0)
        self._student: Tensor | None = None
        if compares:
            self._student = logits.log_softmax(-1) if top_k is None else self._cut.buckets
        self._logprobs = self._cut.logprobs if sampled.is_plain else sampled.logprobs(logits, layout, tokens)
        self._old = self._logprobs.detach() if layout.old is None else layout.old[tokens]
        none = torch.zeros_like(self._old)
        self._teacher_entropy, self._divergence, self._reference_kl, self._clipped = none, none, none, none
        self._bounded, self._masked = none, none

    @property
    def advantage(self) -> Tensor:
        return self._layout.advantage[self._tokens]

    @property
    def contrast(self) -> Tensor:
        return self.advantage.clamp(max=0.0)

    @property
    def weight(self) -> Tensor:
        return self._layout.weights[self._tokens]

    def engine_correction(self) -> Tensor:
        behaviour = self._layout.behaviour[self._tokens]
        correction = engine_correction(self._old, behaviour, self._section.importance_weight_cap)
        section, kept = self._section, self._layout.kept
        if section.engine_mask == "none":
            return correction
        if kept is None:
            inside = in_band(self._old - behaviour, section.engine_mask_low, section.engine_mask_high)
        else:
            inside = kept[self._tokens]
        self._masked = ~inside
        return torch.where(inside, correction, 0.0)

    def capped_ratio(self) -> Tensor:
        cap = self._section.importance_weight_cap
        return policy_ratio(self._logprobs.detach(), self._old).clamp(max=cap)

    def clipped_surrogate(self, advantage: Tensor) -> Tensor:
        advantage, sequence = advantage.detach(), self._layout.sequence
        if sequence is None:
            ratio = policy_ratio(self._logprobs, self._old)
        else:
            ratio = sequence_ratio(self._logprobs, sequence[self._tokens])
        clips = self._section.clip_low, self._section.clip_high
        if self._section.surrogate == "cispo":
            value = ratio.detach()
            self._clipped = (value < 1.0 - clips[0]) | (value > 1.0 + clips[1])
            return cispo(self._logprobs, value, advantage, *clips)
        self._clipped = is_clipped(ratio.detach(), advantage, *clips)
        bound = self._section.dual_clip
        if bound is not None:
            self._bounded = is_bounded(ratio.detach(), advantage, bound)
        return clipped_surrogate(ratio, advantage, *clips, bound)

    def reference_kl(self) -> Tensor:
        if self._layout.reference is not None:
            self._reference_kl = reference_kl(self._cut.logprobs, self._layout.reference[self._tokens])
        return self._section.reference_kl_coefficient * self._reference_kl

    def teacher_gap(self) -> Tensor:
        slots = self._layout.slots[self._tokens]
        theirs = torch.zeros_like(self._old)
        # Found on the CPU: to count them on a GPU would make it wait.
        which = np.flatnonzero(self._layout.taught[self._places])
        if self._teacher is not None and len(which):
            taught = torch.from_numpy(which).to(slots.device)
            cut = cut_fixed(self._teacher.logits(slots[taught]), self._targets[taught])
            theirs[taught] = cut.logprobs.to(theirs.dtype)
            self._teacher_entropy = torch.zeros_like(self._old)
            self._teacher_entropy[taught] = cut.entropy.to(theirs.dtype)
        return torch.where(slots >= 0, theirs - self._cut.logprobs.detach(), 0.0)

    def credit(self) -> Tensor:
        bound = self._section.rlsd_clip
        favour = (self.advantage.sign() * self.teacher_gap()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return favour.exp().clamp(1.0 - bound, 1.0 + bound)

    def divergence(self) -> Tensor:
        assert self._student is not None, "only the SDPO branch compares distributions"
        assert self._teacher is not None, "a teacher pass precedes every token routed to it"
        slots = self._layout.slots[self._tokens]
        if self._student is self._cut.buckets:
            cut = cut_fixed(self._teacher.logits(slots), self._targets, self._cut.chosen)
            teacher, self._teacher_entropy = cut.buckets, cut.entropy
        else:
            logits = self._teacher.logits(slots)
            teacher, self._teacher_entropy = logits.log_softmax(-1), entropy_nats(logits)
        teacher = teacher.to(self._student.dtype)
        self._divergence = generalised_divergence(self._student, teacher, self._section.divergence_alpha)
        return self._divergence

    def statistics(self, loss: Tensor) -> TokenStatistics:
        """What the terms have found, and the objective's token losses [n]."""
        return TokenStatistics(
            logprobs=self._logprobs,
            old=self._old,
            entropy=self._cut.entropy,
            teacher_entropy=self._teacher_entropy,
            divergence=self._divergence,
            reference_kl=self._reference_kl,
            clipped=self._clipped,
            bounded=self._bounded,
            masked=self._masked,
            loss=loss,
        )

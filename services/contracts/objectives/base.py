"""What an objective is: routing, token loss, the fields that it takes, presets.

An objective is one file in this folder and one entry in `registry`. Nothing here imports torch: the run configuration
needs names, fields and presets; the learner hands the token loss its terms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

from services.contracts.objectives.settings import TEACHER, ObjectiveSettings

Branch = Literal["grpo", "sdpo"]
"""`grpo`: rollouts whose loss needs the probability of the sampled tokens only. `sdpo`: whose loss compares whole
distributions, student's and teacher's."""
Route = Literal["grpo", "sdpo", "none"]
"""`none` contributes nothing: no loss, no tokens in the denominator."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides on a rollout's branch."""

    correct: bool
    """c_i: its reward reaches the success threshold."""
    informed: bool
    """m_i: its teacher has a correct sibling or feedback to read."""
    share_correct: float
    """Share of its group's usable rollouts that are correct, itself included."""


@dataclass(frozen=True, slots=True)
class Weighting:
    """Weights of the tokens routed to SDPO: floor + (1 - floor) v / mean of v over all of them, where
    v = d exp(-entropy H + position u), H being the teacher's entropy, u the place in the response from 0 to 1, and d
    sqrt(p (1 - p)) of the question if `by_question`, else 1."""

    entropy: float
    position: float
    by_question: bool
    floor: float

    @classmethod
    def of(cls, section: ObjectiveSettings, beta: float) -> Self | None:
        """The section's, with `beta` for entropy; None if all weights are 1."""
        by_question = section.question_weight == "difficulty"
        if not (beta or section.position_beta or by_question):
            return None
        return cls(beta, section.position_beta, by_question, section.weight_floor)


class Values(Protocol):
    """One real number for each of n response tokens: a tensor [n] in the learner."""

    def __add__(self, other: Self, /) -> Self: ...
    def __mul__(self, other: Self, /) -> Self: ...
    def __rmul__(self, other: float, /) -> Self: ...


V = TypeVar("V", bound=Values)


class Terms(Protocol[V]):
    """What a token loss is made of, for n response tokens of one branch. Settings are the run's."""

    @property
    def advantage(self) -> V:
        """Group-relative advantage A_i of each token's rollout."""

    @property
    def contrast(self) -> V:
        """min(A_i, 0): what a failed rollout loses against its group."""

    @property
    def weight(self) -> V:
        """Weight w by `Objective.weighting`, with mean 1 over the tokens routed to SDPO."""

    def engine_correction(self) -> V:
        """min(pi_old / mu, cap), without gradient: truncated importance sampling between learner and engine. 0 for what
        `engine_mask` leaves out."""

    def clipped_surrogate(self, advantage: V) -> V:
        """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = pi_theta / pi_old by `ratio`; if A < 0 at most
        -`dual_clip` A. With `surrogate: cispo`, -clip(rho) A log pi_theta, no gradient reaching clip(rho). None reaches
        A either way."""

    def reference_kl(self) -> V:
        """reference_kl_coefficient * KL(pi_theta || initial model); 0 without a coefficient."""

    def teacher_gap(self) -> V:
        """log q(y_t) - log p(y_t) of the sampled token, without gradient; 0 without teacher information."""

    def credit(self) -> V:
        """clip(exp(sign(A_i) teacher gap), 1 - rlsd_clip, 1 + rlsd_clip), without gradient; 1 without teacher
        information."""

    def divergence(self) -> V:
        """D_alpha(p, q) between student and self-teacher on the student's top K and a tail. Branch `sdpo` only."""

    def capped_ratio(self) -> V:
        """min(pi_theta / pi_old, cap), without gradient."""


class Objective(ABC):
    """One training objective. Instances hold no state; `section` is the run's section `objective`."""

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]]
    """Fields of the section that it takes; others must keep their defaults."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Values of a run configuration, by preset name."""

    @abstractmethod
    def route(self, standing: Standing, section: ObjectiveSettings) -> Route:
        """The branch of a rollout. Without teacher information it is never `sdpo`."""

    @abstractmethod
    def token_loss(self, branch: Branch, terms: Terms[V], section: ObjectiveSettings) -> V:
        """The loss of each token of one branch, before `aggregation` over the mini-batch.

        On branch `grpo` it must have no gradient if A = 0 and there is neither teacher nor reference: rollouts without
        any get no backward pass.
        """

    def asks_teacher(self, standing: Standing, section: ObjectiveSettings) -> bool:
        """Whether a rollout needs a teacher pass: by default those of the SDPO branch."""
        return self.route(standing, section) == "sdpo"

    def teaches(self, advantage: float, taught: bool, section: ObjectiveSettings) -> bool:
        """Whether a routed rollout can move the policy, given its advantage and whether it has a teacher pass."""
        return taught or advantage != 0.0

    def weighting(self, section: ObjectiveSettings) -> Weighting | None:
        """How the tokens of the SDPO branch are weighted; None: all alike."""
        return None

    def keeps_contrast(self, section: ObjectiveSettings) -> bool:
        """Whether the SDPO branch has a policy gradient too."""
        return False

    def teaches_alone(self, section: ObjectiveSettings) -> bool:
        """Whether a rollout without siblings can be learnt from."""
        return False

    @property
    def has_teacher(self) -> bool:
        """Whether any rollout may need a teacher pass."""
        return self.takes >= TEACHER

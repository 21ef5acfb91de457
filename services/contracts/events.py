"""A run's events for the API, on the stream `events` of all runs. The API stores them for metrics and pages.

Delivery is at least once, so every event has a natural key (run and step, run and version, ...) under which storing it
twice changes nothing.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from services.contracts.messages import Message, Question
from services.contracts.states import RunState

Information = Literal["solution", "feedback", "solution_and_feedback", "reference"]
"""What a self-teacher can be told: a correct sibling's solution; the verifier's feedback on a failed rollout; both; or
the solution in the question's row."""
SAMPLES_EVERY_STEPS = 5
"""Steps whose first group is kept as samples; so is that of step 1."""


class Event(Message, frozen=True, kw_only=True):
    """Base of all events."""

    run_id: str
    at: float
    """Unix time in seconds."""


class RunStateChanged(Event, frozen=True, kw_only=True):
    """The learner's report of the run's state."""

    state: RunState
    reason: str = ""


class Histogram(Message, frozen=True, kw_only=True):
    """Counts of values in [edges[i], edges[i+1]); the first bucket also holds smaller, the last also larger values."""

    edges: list[float]
    counts: list[int]
    total: float
    """Sum of the values."""


class StepFinished(Event, frozen=True, kw_only=True):
    """One training step: one batch of groups, one published weight version.

    `step` counts from 1; the weights after it carry version `step`. Names of `metrics` are those of
    `services.contracts.step_metrics.STEP_METRICS`; values are finite.
    """

    step: int
    metrics: dict[str, float]
    histograms: dict[str, Histogram] = {}
    """`distillation_weight` and `staleness_versions`."""
    groups: dict[str, int] = {}
    """Ledger so far: fed, trained, in_flight, replaced, and one `dropped_<reason>` for each reason."""


class QuestionCount(Message, frozen=True, array_like=True):
    """What one question came to in a run's evaluation."""

    question_id: str
    kind: str
    num_samples: int
    """Samples that could be judged, at least one."""
    num_correct: int


class EvaluationFinished(Event, frozen=True, kw_only=True):
    """avg@k and pass@k of one split at one weight version."""

    step: int
    split: str
    num_questions: int
    num_samples: int
    """k: samples per question."""
    accuracy: float
    """avg@k: mean over questions of the share of correct samples."""
    pass_at_k: float
    """Share of questions with at least one correct sample."""
    accuracy_by_kind: dict[str, float] = {}
    response_tokens_mean: float = 0.0
    truncated_ratio: float = 0.0
    num_faults: int = 0
    """Samples left out because of an infrastructure fault."""
    seconds: float = 0.0
    questions: list[QuestionCount] | msgspec.UnsetType = msgspec.UNSET
    """Each question with a judged sample; unset if the sender does not report them."""


class TeacherGap(Message, frozen=True, kw_only=True):
    """What one kind of teacher information adds to accuracy."""

    information: Information
    num_questions: int
    """Questions that have this information and were sampled again with it in the prompt."""
    taught_accuracy: float
    """avg@k of these questions with the teacher's prompt."""
    untaught_accuracy: float
    """avg@k of these questions without it, not counting the rollouts that the information came from."""

    @property
    def points(self) -> float:
        """Difference of the two, a share of 1."""
        return self.taught_accuracy - self.untaught_accuracy


class ProbeFinished(Event, frozen=True, kw_only=True):
    """How the untrained model does on training questions, sampled as in training (`turnout runs probe`).

    Samples with an infrastructure fault are left out, and questions that have no others.
    """

    num_questions: int
    num_samples: int
    """Rollouts per question."""
    accuracy: float
    """avg@k: mean over questions of the share of correct rollouts."""
    pass_at_k: float
    """Share of questions with at least one correct rollout."""
    all_correct_ratio: float
    """Share of questions whose rollouts are all correct."""
    mixed_ratio: float
    """Share of questions with correct and failed rollouts."""
    all_wrong_ratio: float
    """Share of questions whose rollouts have all failed."""
    well_formed_ratio: float
    """Share of rollouts in the form that the reward asks for."""
    truncated_ratio: float
    """Share of rollouts that were cut at `rollout.max_response_tokens`."""
    response_tokens_mean: float
    response_tokens_p95: int
    """95% of the rollouts are at most this long."""
    num_taught_questions: int
    """Questions sampled again with the teacher's prompt: those with a correct rollout to demonstrate."""
    taught_accuracy: float
    """avg@k of these questions with the teacher's prompt."""
    untaught_accuracy: float
    """avg@k of these questions without it, not counting the rollout that was the demonstration."""
    num_faults: int = 0
    seconds: float = 0.0
    """Time that sampling and judging took."""
    gaps: list[TeacherGap] | msgspec.UnsetType = msgspec.UNSET
    """One for each kind of information that the questions have."""

    @property
    def teacher_gap(self) -> float:
        """What the demonstration adds to accuracy; it predicts the gain of self-distillation (arXiv 2605.30070)."""
        return self.taught_accuracy - self.untaught_accuracy


class CheckpointWritten(Event, frozen=True, kw_only=True):
    """A checkpoint is durable on disk."""

    step: int
    path: str
    bytes: int
    seconds: float


class WeightsPublished(Event, frozen=True, kw_only=True):
    """A version is in the weight store; the API pushes it to the rollout servers."""

    version: int
    path: str
    checksum: str
    """`blake3:<hex>` of the manifest, which contains the checksum of every file."""
    bytes: int


class Note(Event, frozen=True, kw_only=True):
    """Something that users should see: a stall, a retry, a dropped group, a resume."""

    level: Literal["info", "warning", "error"]
    source: str
    """Service and instance."""
    text: str


class Sample(Message, frozen=True, kw_only=True):
    """One rollout as the learner used it, for display. Lists have one entry per response token."""

    index: int
    text: str
    tokens: list[str]
    reward: float
    correct: bool
    route: Literal["grpo", "sdpo", "none"]
    advantage: float
    feedback: str = ""
    teacher_prompt: str = ""
    behaviour_logprobs: list[float] = []
    logprobs: list[float] = []
    teacher_entropy: list[float] = []
    """Nats; empty without a teacher pass."""
    distillation_weight: list[float] = []
    divergence: list[float] = []
    parts: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    """Reward of each part of a combined reward, by name."""


class TeacherInformation(Message, frozen=True, kw_only=True):
    """What a teacher reads in addition to the question."""

    demonstrations: list[int] = []
    """Indices of the responses of the group that its prompt shows as solutions, in this order."""
    reference: bool = False
    """The solution in the question's row."""
    feedback: bool = False
    """The feedback on the response that is taught."""


class ReadableResponse(Message, frozen=True, kw_only=True):
    """One response as teachers need it."""

    index: int
    token_ids: list[int]
    demonstration: str
    """The response as a teacher reads it; empty if there is no answer in it."""
    told: TeacherInformation | None = None
    """What this step's teacher read; null without a teacher pass."""


class ReadingMaterial(Message, frozen=True, kw_only=True):
    """What other teachers need to read a group's responses."""

    question: Question
    """The row, without the `tests` of its reward."""
    responses: list[ReadableResponse]
    """As in `samples`."""


class SamplesTaken(Event, frozen=True, kw_only=True):
    """One group of a training step, kept for the sample browser."""

    step: int
    group_id: str
    question_id: str
    prompt: str
    answer: str
    samples: list[Sample]
    """All rollouts of the group."""
    material: ReadingMaterial | msgspec.UnsetType = msgspec.UNSET

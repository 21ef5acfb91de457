"""The REST API's records, from which its schemas and the client's values are derived. Times are Unix seconds.

Records of a run's history are events that the API has stored. Events are defined only in `services.contracts.events`;
the tables are derived from them too (`services.api.storage.history`). Responses do not repeat their `run_id`; the
client fills it in. Unknown fields are ignored, so that a client can talk to a newer API.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from services.contracts.events import (
    CheckpointWritten,
    EvaluationFinished,
    Event,
    ProbeFinished,
    StepFinished,
    TeacherGap,
)
from services.contracts.heartbeat import ServiceRecord
from services.contracts.states import TERMINAL_STATES, DesiredState, RunState

Role = Literal["read", "use", "operate"]
ExperimentState = Literal["running", "stopped", "succeeded", "failed"]
EvaluationState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Verdict = Literal["shown", "not shown", "opposite", "no data"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of records that are neither events nor heartbeats."""


class ForkedFrom(Record, frozen=True, kw_only=True):
    """The run and step that a fork started from."""

    run_id: str
    """The parent; it may have been deleted since."""
    step: int
    """Step of the parent's checkpoint that the run started from."""


class Model(Record, frozen=True, kw_only=True):
    """A model in OpenAI's format: the policy of a run, of which `id@version` asks for one weight version only, or a
    model on demand."""

    id: str
    """The run's id, which asks for the newest weights; of a model on demand `run@version`, or a base model's path."""
    object: str = "model"
    created: int
    """When the run was created or the model was asked for, in Unix seconds; 0 for a model that is not loaded."""
    owned_by: str = "turnout"
    name: str
    """The run's name; the id of a model on demand."""
    root: str
    """The base model."""
    max_model_len: int
    """Longest prompt and response together, in tokens."""
    weight_version: int
    """The newest version that a server of the run has loaded; the step of a model on demand."""
    state: Literal["live", "loading", "loaded", "unloaded"] = "live"
    """live: the policy of a run, on its own servers. Others are models on demand: on a server, on the way to one, or
    loaded if they are asked for and a server is idle."""


class ModelList(Record, frozen=True, kw_only=True):
    """The models that can be asked now."""

    object: str = "list"
    data: list[Model]


class QueuePlace(Record, frozen=True, kw_only=True):
    """Why a queued run waits, and until when."""

    position: int
    """1: it starts next."""
    reason: str
    """What the run waits for, as a sentence."""
    starts_in_seconds: float | None = None
    """Estimate: the runs before it keep the pace of those that run now. Null if nothing is known."""


class Run(Record, frozen=True, kw_only=True):
    """One run."""

    id: str
    name: str
    state: RunState
    reason: str = ""
    """Why the run is in its state; empty if that needs no explanation."""
    desired: DesiredState = "running"
    """The state that was requested last."""
    created_at: float = 0.0
    queued_at: float = 0.0
    priority: int = 0
    """Of queued runs, the one with the highest priority starts first; of equal ones, the oldest."""
    queue: QueuePlace | None = None
    """Why the run waits; null unless it is queued."""
    created_by: str = ""
    """Id of the key that created the run; empty if the API requires none."""
    tags: list[str] = []
    """In alphabetical order."""
    note: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    step: int = 0
    """Newest finished training step."""
    num_steps: int = 0
    """Training steps in the configuration."""
    objective: str = ""
    learner: str | None = None
    rollout_servers: list[str] = []
    metrics: dict[str, float] = {}
    """Metrics of the newest step."""
    forked_from: ForkedFrom | None = None
    """The run and step that this one was forked from; null if it started from its model."""
    fields: dict[str, Any] = {}
    """Values of the configuration that a list was asked for as `field`; those that it lacks are missing."""
    config: dict[str, Any] = {}
    """The whole configuration, every default filled in. Not in lists."""
    notices: list[str] = []
    """Settings that are valid but may be unintended, such as those of another objective; each says what to do. Not in
    lists."""
    groups: dict[str, int] = {}
    """Ledger of prompt groups: fed, trained, in_flight, replaced, dropped_<reason>. Not in lists."""
    accuracy_first: float | None = None
    """avg@k of the first evaluation. Not in lists."""
    accuracy_last: float | None = None
    """avg@k of the newest evaluation. Not in lists."""

    @property
    def has_ended(self) -> bool:
        return self.state in TERMINAL_STATES


class RunFile(Record, frozen=True, kw_only=True):
    """A run file that the deployment ships."""

    name: str
    text: str
    """YAML."""


class RunInputs(Record, frozen=True, kw_only=True):
    """Models and data files in the folders that runs may read, as run files name them."""

    models: list[str]
    data: list[str]
    is_whole: bool
    """Whether these are all that there are; large folders are not searched to the end."""


class Key(Record, frozen=True, kw_only=True):
    """An API key without its text."""

    id: str
    """The key's text begins with `turnout_<id>_`."""
    name: str
    role: Role
    """read: view everything except keys. operate: also start, change and delete runs, and manage keys."""
    created_at: float = 0.0


class NewKey(Key, frozen=True, kw_only=True):
    """A key with its text, which is shown only once."""

    key: str
    """Send it as `Authorization: Bearer <key>`. Only its digest is stored."""


class Service(ServiceRecord, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """One live service instance, as its heartbeat reports it."""

    out_of_rotation: bool = False
    """Whether a rollout server failed to load weights and is kept from sampling until an update succeeds."""
    weight_error: str = ""
    """Why it is out of rotation; empty if it is not."""


class QueueState(Record, frozen=True, kw_only=True):
    """One stream of one run."""

    run_id: str
    stream: str
    """prompts, completions, scored, evaluated or dead."""
    depth: int
    """Messages not yet acknowledged, waiting or in progress."""
    oldest_seconds: float = 0.0
    """Age of the oldest of them; 0 for an empty stream."""
    removed: int = 0
    """Dead letters that were removed to make room; 0 for the other streams."""


class Step(StepFinished, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """One training step."""

    run_id: str = ""


class Evaluation(EvaluationFinished, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """avg@k and pass@k of one split after one step (0: before training)."""

    run_id: str = ""


class Checkpoint(CheckpointWritten, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A durable checkpoint."""

    run_id: str = ""
    exists: bool = False
    """Whether the folder is still on disk: older ones are deleted by the run's checkpoint policy."""


class WeightPush(Event, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """One attempt to update one rollout server to one weight version."""

    run_id: str = ""
    version: int
    instance: str
    seconds: float
    error: str = ""
    """Empty if the server's checksum was confirmed; otherwise what failed."""
    transport: str = "store"
    """The transport of the last attempt: `store`, or the run's `weights.transport`."""


class RunEvent(Record, frozen=True, kw_only=True):
    """One server-sent event. Pass `id` as `after` to continue after it."""

    id: str
    type: str
    data: dict[str, Any]


class ExperimentSummary(Record, frozen=True, kw_only=True):
    """An experiment without its file and runs."""

    id: str
    name: str
    state: ExperimentState
    reason: str
    """Why the experiment is in its state; empty if that needs no explanation."""
    digest: str
    """SHA-256 of the file in canonical JSON."""
    created_at: float
    finished_at: float | None


class ExperimentRun(Record, frozen=True, kw_only=True):
    """One run of an experiment."""

    cell: str
    """Names the run within the experiment: phase, method, grid point and seed."""
    phase: str
    """tuning or final."""
    method: str
    values: dict[str, Any]
    """The grid's values, by field."""
    seed: int
    run_id: str | None
    state: str | None
    """The run's state; null: not started yet."""
    step: int
    num_steps: int
    accuracy: float | None
    """Newest evaluation."""


class Experiment(ExperimentSummary, frozen=True, kw_only=True):
    """An experiment with its file, choices and runs."""

    file: dict[str, Any]
    """As it was sent, before the first run."""
    inputs: dict[str, str]
    """SHA-256 of each data file, by path."""
    chosen: dict[str, dict[str, Any]] | None
    """The grid's values that tuning chose, by method; null until all tuning runs have ended."""
    scores: dict[str, list[list[float]]] | None
    """Tuning scores by method, grid point and seed; null before the choice and without tuning."""
    num_runs: int
    """Runs in all, those that tuning has yet to choose settings for included."""
    seconds_left: float | None
    """Estimated from the runs that have succeeded; null if the experiment is not running, or has no step yet."""
    runs: list[ExperimentRun]


class Estimate(Record, frozen=True, kw_only=True):
    """A mean over seeds with its interval."""

    mean: float | None
    low: float | None = None
    """Lower end of the 95% interval; null with fewer than two seeds."""
    high: float | None = None
    values: list[float | None]
    """One per seed, in the order of the experiment's seeds; null if the run has no such number."""


class CurvePoint(Record, frozen=True, kw_only=True):
    """Accuracy at one step, over seeds."""

    step: int
    seconds: float
    mean: float
    low: float
    """The lowest seed."""
    high: float


class MethodResult(Record, frozen=True, kw_only=True):
    """One method's final runs."""

    method: str
    before: Estimate
    """Accuracy before training."""
    score: Estimate
    """Mean accuracy of the last evaluations."""
    within_steps: dict[str, Estimate]
    """Best accuracy within each budget of steps."""
    within_seconds: dict[str, Estimate]
    """Best accuracy within each budget of seconds of training."""
    seconds_per_step: Estimate
    num_collapsed: int
    """Runs that ended with less than half of their best accuracy."""
    num_missing: int
    """Runs that failed or have not ended."""
    difference: Estimate | None
    """Score minus the baseline's, paired by seed; null for the baseline."""
    num_ahead: int
    """Seeds with which the score is above the baseline's."""
    windows: dict[str, list[float | None]]
    """Metrics over time: the mean over all seeds in each fifth of the run."""
    curve: list[CurvePoint]


class ClaimResult(Record, frozen=True, kw_only=True):
    """A claim held against the final runs."""

    claim: str
    verdict: Verdict
    """shown: the interval of the difference is above 0. opposite: below 0. not shown: it contains 0."""
    higher: Estimate
    lower: Estimate
    difference: Estimate


class Results(Record, frozen=True, kw_only=True):
    """Everything that a report shows of the final runs."""

    seeds: list[int]
    baseline: str
    methods: list[MethodResult]
    claims: list[ClaimResult]


class TeacherReading(Record, frozen=True, kw_only=True):
    """How likely a stored response's tokens are to a model that read something in addition to the question."""

    prompt: str
    """The user message of the teacher's prompt."""
    num_prompt_tokens: int
    logprobs: list[float]
    """Of each token of the response at temperature 1, nats."""


class TeacherReadings(Record, frozen=True, kw_only=True):
    """The same tokens as the policy and as several teachers read them, all with the same weights."""

    weights: str
    """Which ones: the run and the weight version."""
    policy: list[float]
    """Log-probs of the response's tokens after the question alone, as in `TeacherReading`."""
    teachers: list[TeacherReading]


class Probe(Record, frozen=True, kw_only=True):
    """What a probe found, and what it means for the run that is being considered."""

    result: ProbeFinished
    teacher_gap: float
    """What a correct sibling's solution in the prompt adds to accuracy (arXiv 2605.30070)."""
    gaps: list[TeacherGap]
    """The same for each kind of information that the questions have."""
    seconds_per_step: float | None
    """Mean of the timed training steps but the first; null before there is one."""
    hours: float | None
    """Time that `planned_steps` steps would take, evaluations excluded."""
    planned_steps: int
    advice: list[str]
    """Sentences, most important first."""


class IntervalEstimate(Record, frozen=True):
    """A mean over questions with its bootstrap interval (docs/evaluations.md)."""

    value: float
    low: float | None
    """Lower end of the 95% interval; null with fewer than two questions."""
    high: float | None


class PassAtK(Record, frozen=True, kw_only=True):
    """Share of questions that at least one of k samples solves."""

    k: int
    share: IntervalEstimate


class SetResult(Record, frozen=True, kw_only=True):
    """One validation set's numbers, of the questions that have been judged so far."""

    set: str
    num_questions: int
    """Questions with at least one sample that could be judged."""
    num_samples: int
    """Samples per question."""
    temperature: float
    accuracy: IntervalEstimate
    """avg@k: mean over questions of the share of correct samples."""
    pass_at_k: list[PassAtK]
    """For k = 1, 2, 4, ... and the number of samples; unbiased (arXiv 2107.03374)."""
    accuracy_by_kind: dict[str, float]
    num_solved: int
    """Questions of which at least half of the samples are correct."""
    response_tokens_mean: float
    truncated_ratio: float
    num_faults: int
    """Samples left out because of an infrastructure fault."""


class QuestionResult(Record, frozen=True, kw_only=True):
    """What one question came to in an evaluation."""

    set: str
    number: int
    """Place in its set, from 0."""
    question_id: str
    kind: str
    num_samples: int
    """Samples that could be judged."""
    num_correct: int
    num_truncated: int
    num_faults: int
    response_tokens: int
    """Sum over its samples."""
    fault: str
    """The first fault; empty without one."""


class EvaluatedSample(Record, frozen=True, kw_only=True):
    """One sample of an evaluated question."""

    index: int
    """Place among the question's samples, from 0."""
    text: str
    """The response. Of a long one, only beginning and end."""
    counts: bool
    """False for a sample with an infrastructure fault or of other weights, which is left out of the results."""
    correct: bool
    reward: float
    num_tokens: int
    truncated: bool
    """Whether it was cut at `rollout.max_response_tokens`."""
    feedback: str
    fault: str
    """Empty without one."""


class KeptSamples(Record, frozen=True, kw_only=True):
    """What is kept of an evaluated question for people to read."""

    prompt: str
    answer: str
    """As the data has it; its form depends on the kind."""
    samples: list[EvaluatedSample]
    """At most four, correct and failed ones if there are both, in their order."""


class ModelEvaluationSummary(Record, frozen=True, kw_only=True):
    """An evaluation without its questions."""

    id: str
    name: str
    state: EvaluationState
    reason: str
    """Why it is in its state or what it waits for; empty if that needs no explanation."""
    model: str
    """Folder or hub name of the model."""
    run: str | None
    """The run whose weights are evaluated; it may have been deleted since."""
    step: int | None
    """Step of the run at which they are."""
    priority: int = 0
    """Of queued evaluations, the one with the highest priority starts first; of equal ones, the oldest."""
    rollout_servers: list[str]
    num_questions: int | None
    """In all sets; null until they have been read."""
    num_done: int
    """Questions that have been judged or given up."""
    created_at: float
    started_at: float | None
    finished_at: float | None
    results: list[SetResult]
    """One per set, from the questions judged so far."""


class ModelEvaluation(ModelEvaluationSummary, frozen=True, kw_only=True):
    """An evaluation of one weight version."""

    request: dict[str, Any]
    """As it was sent."""
    config: dict[str, Any]
    """What the services work with: a run configuration with every default filled in."""


class ChangedQuestion(Record, frozen=True, kw_only=True):
    """One question in two evaluations."""

    question_id: str
    kind: str
    before: float
    """Share of correct samples in the first evaluation."""
    after: float


class SetDifference(Record, frozen=True, kw_only=True):
    """What changed in one set, on the questions that both evaluations have."""

    set: str
    num_questions: int
    before: float
    """avg@k of these questions in the first evaluation."""
    after: float
    difference: IntervalEstimate
    """avg@k of the second minus that of the first, with the interval over the questions' differences."""
    num_better: int
    """Questions with a higher share of correct samples."""
    num_worse: int
    learned: list[ChangedQuestion]
    """Questions that are solved (at least half of the samples are correct) only in the second; largest change first."""
    forgotten: list[ChangedQuestion]
    """Questions that are solved only in the first."""


class EvaluationDifference(Record, frozen=True, kw_only=True):
    """The second evaluation compared with the first."""

    first: str
    second: str
    sets: list[SetDifference]
    num_unpaired: int
    """Questions that only one of them has; they are left out."""

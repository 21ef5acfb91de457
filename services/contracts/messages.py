"""The messages of the ring: what travels from feeder to rollout to verifier to learner.

One message on `completions` and `scored` is one *group*: a prompt with all its rollouts, because routing, advantages
and demonstrations need the siblings together. Messages are frozen and carry everything that the next service needs, so
that any instance may take any message. Numbers are checked on arrival (`check` methods), once, at the border.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from services.contracts.arrays import LogProbs, TokenIds
from services.contracts.errors import MalformedMessageError

Purpose = Literal["train", "evaluation"]
FinishReason = Literal["stop", "length"]
SampleStatus = Literal["ok", "infrastructure_fault"]


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all messages."""


class Question(Message, frozen=True, kw_only=True):
    """One row of a dataset, as the verifier and the prompt template need it."""

    id: str
    """Identifier of the row, unique within its dataset."""
    kind: str
    """Name of the registered reward that judges replies (`mcq`, `tooluse`, ...)."""
    prompt: str
    """The user's message, as text."""
    system: str = ""
    """The system message; empty for none."""
    answer: str = ""
    """What the reward compares with. Its form depends on `kind`."""
    tests: str = ""
    """Further material for the reward (JSON for most kinds)."""


class Sampling(Message, frozen=True, kw_only=True):
    """How one group is sampled."""

    num_samples: int
    """Rollouts in the group, G >= 1."""
    temperature: float
    """>= 0; 0 is greedy."""
    top_p: float
    """In (0, 1]."""
    top_k: int
    """Tokens kept, or 0 for all."""
    max_response_tokens: int
    """Longest response, in tokens, the end-of-sequence token included."""


class PromptTask(Message, frozen=True, kw_only=True):
    """A question to be sampled. Fed by the learner's prompt feeder on `prompts`."""

    run_id: str
    group_id: str
    """Unique within the run: `<purpose>-<sequence>`; evaluations carry the evaluated step as well."""
    sequence: int
    """Position in the run's feeding order, from 0. Train and evaluation tasks count separately."""
    purpose: Purpose
    question: Question
    sampling: Sampling
    min_weight_version: int
    """A rollout server holds the task until its weights are at least this version."""
    step: int
    """The training step (from 0) that this group is meant for, or the step that is evaluated."""
    max_prompt_tokens: int
    """Prompts that render to more tokens than this are refused with a fault, not cut."""
    fed_at: float
    """Unix time in seconds of the feeding."""


class VersionSpan(Message, frozen=True, array_like=True):
    """Response tokens [start, end) were sampled by weights of `version`."""

    version: int
    start: int
    end: int


class Rollout(Message, frozen=True, kw_only=True):
    """One sampled response with its behaviour log-probs.

    For status `ok`: `token_ids`, `logprobs` have one entry a response token (end-of-sequence included when it was
    sampled); the spans of `weight_versions` cover them without gap or overlap.
    """

    status: SampleStatus
    text: str = ""
    """The response as text, without the tokens that control sequence and chat template; tags stay."""
    token_ids: TokenIds = msgspec.field(default_factory=TokenIds)
    logprobs: LogProbs = msgspec.field(default_factory=LogProbs)
    """Natural-log probability of each token under the distribution that it was drawn from (temperature, cuts)."""
    weight_versions: list[VersionSpan] = []
    finish_reason: FinishReason = "stop"
    """`length` marks a response cut at the limit (truncated)."""
    fault: str = ""
    """What went wrong, where status is not `ok`."""

    def check(self) -> None:
        """Raise `MalformedMessageError` where lengths or spans do not fit together."""
        num_tokens = len(self.token_ids)
        if self.status != "ok":
            return
        if len(self.logprobs) != num_tokens:
            raise MalformedMessageError(f"rollout has {num_tokens} token_ids but {len(self.logprobs)} logprobs.")
        position = 0
        for span in self.weight_versions:
            if span.start != position or span.end <= span.start or span.version < 0:
                raise MalformedMessageError("rollout.weight_versions leaves a gap, overlaps or is empty.")
            position = span.end
        if position != num_tokens:
            raise MalformedMessageError(f"rollout.weight_versions covers {position} of {num_tokens} tokens.")

    def check_numbers(self) -> None:
        """Raise `MalformedMessageError` where a log-prob is none. For the service that computes with them."""
        # sum and max run in C
        if not math.isfinite(sum(self.logprobs)) or max(self.logprobs, default=0.0) > 1e-4:
            raise MalformedMessageError("rollout.logprobs holds a value that is not a finite log-probability.")

    @property
    def oldest_version(self) -> int | None:
        """The oldest weight version among the tokens; None for an empty response."""
        return min((span.version for span in self.weight_versions), default=None)


class CompletedGroup(Message, frozen=True, kw_only=True):
    """A task with its sampled rollouts. Published by a rollout server on `completions`."""

    task: PromptTask
    prompt_token_ids: TokenIds
    """The rendered prompt: system and user message through the chat template, generation prompt included."""
    rollouts: list[Rollout]
    """Exactly `task.sampling.num_samples` of them."""
    server: str
    """Instance name of the rollout server."""
    seconds: float
    """Time from taking the task to its last token."""

    @property
    def run_id(self) -> str:
        return self.task.run_id

    def check(self) -> None:
        if len(self.rollouts) != self.task.sampling.num_samples:
            raise MalformedMessageError(
                f"group {self.task.group_id} has {len(self.rollouts)} rollouts, not {self.task.sampling.num_samples}."
            )
        for rollout in self.rollouts:
            rollout.check()


class Verdict(Message, frozen=True, kw_only=True):
    """What the verifier found of one rollout."""

    status: SampleStatus
    """`infrastructure_fault`: the verifier itself failed; the sample is excluded from its group, never scored 0."""
    reward: float = 0.0
    """In [0, 1]."""
    correct: bool = False
    """All-or-nothing: the reward function's own word, not the run's success threshold."""
    parsed_answer: str = ""
    format_ok: bool = False
    feedback: str = ""
    """Short text that tells a model what was wrong; empty for none."""
    seconds: float = 0.0
    fault: str = ""

    def check(self) -> None:
        if not (math.isfinite(self.reward) and 0.0 <= self.reward <= 1.0):
            raise MalformedMessageError(f"verdict.reward is {self.reward}, outside [0, 1].")


class ScoredGroup(Message, frozen=True, kw_only=True):
    """A completed group with one verdict a rollout. Published by a verifier on `scored` or `evaluated`."""

    group: CompletedGroup
    verdicts: list[Verdict]
    verifier: str
    """Instance name of the verifier."""

    @property
    def run_id(self) -> str:
        return self.group.run_id

    def check(self) -> None:
        self.group.check()
        if len(self.verdicts) != len(self.group.rollouts):
            raise MalformedMessageError(
                f"group {self.group.task.group_id} has {len(self.verdicts)} verdicts "
                f"for {len(self.group.rollouts)} rollouts."
            )
        for rollout in self.group.rollouts:
            rollout.check_numbers()
        for verdict in self.verdicts:
            verdict.check()


class DeadLetter(Message, frozen=True, kw_only=True):
    """Bytes that no service could read or handle, with the reason. On `dead`."""

    stream: str
    message_id: str
    reason: str
    payload: bytes
    at: float

"""The messages of the ring, from feeder to rollout server to verifier to learner.

One message on `completions` and `scored` is one *group*: a prompt with all its rollouts, because routing, advantages
and demonstrations need the siblings together. Messages are frozen and carry everything that the next service needs, so
that any instance may take any message. Every field is checked on arrival, once, at the border: bounds of single values
by the decoder (`Meta`), what must fit together by the `check` methods.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from services.contracts.arrays import LogProbs, TokenIds
from services.contracts.errors import MalformedMessageError

Purpose = Literal["train", "evaluation"]
FinishReason = Literal["stop", "length"]
SampleStatus = Literal["ok", "infrastructure_fault"]

MAX_SAMPLES = 16_384
"""Most rollouts in one group; run configurations are limited to it."""
MAX_TOKENS = 1 << 24
"""Most tokens in one prompt or response; run configurations are limited to it."""
MAX_TEMPERATURE = 100.0
MAX_TOP_K = (1 << 31) - 1
MAX_TEXT = 1 << 26
"""Most characters in one text."""
MAX_PARTS = 16
"""Most parts of a combined reward."""
MAX_TURNS = 10_000
"""Most messages of a conversation."""
_Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
_Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
_Name = Annotated[str, Meta(min_length=1, max_length=500)]
_Text = Annotated[str, Meta(max_length=MAX_TEXT)]
_Seconds = Annotated[float, Meta(ge=0, le=1e12)]


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all messages."""


class Turn(Message, frozen=True, kw_only=True):
    """One message of the conversation before the prompt."""

    role: Literal["user", "assistant"]
    content: _Text


class Question(Message, frozen=True, kw_only=True):
    """One row of a dataset, as the verifier and the prompt template need it."""

    id: _Text
    """Identifier of the row, unique within its dataset."""
    kind: _Text
    """Name of the registered reward that judges replies (`mcq`, `tooluse`, ...)."""
    prompt: _Text
    """The user's message, as text; of a conversation, the last one."""
    system: _Text = ""
    """The system message; empty for none."""
    answer: _Text = ""
    """What the reward compares with. Its form depends on `kind`."""
    tests: _Text = ""
    """Further material for the reward (JSON for most kinds)."""
    solution: _Text | msgspec.UnsetType = msgspec.UNSET
    """A worked solution for the self-teacher to read; the learner sets it only where a run asks for it."""
    history: Annotated[tuple[Turn, ...], Meta(max_length=MAX_TURNS)] | msgspec.UnsetType = msgspec.UNSET
    """The conversation between system message and prompt, if there is one."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """`history`, empty if there is none."""
        return () if self.history is msgspec.UNSET else self.history


class Sampling(Message, frozen=True, kw_only=True):
    """How one group is sampled."""

    num_samples: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
    """Rollouts in the group, G."""
    temperature: Annotated[float, Meta(ge=0, le=MAX_TEMPERATURE)]
    """0 is greedy."""
    top_p: Annotated[float, Meta(gt=0, le=1)]
    top_k: Annotated[int, Meta(ge=0, le=MAX_TOP_K)]
    """Tokens kept, or 0 for all."""
    max_response_tokens: _Tokens
    """Longest response in tokens, including the end-of-sequence token."""
    min_p: Annotated[float, Meta(ge=0, lt=1)] | msgspec.UnsetType = msgspec.UNSET
    """Tokens are kept if they have at least this share of the likeliest one's probability; unset for all."""
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | msgspec.UnsetType = msgspec.UNSET
    """Subtracted from the logits of tokens that already occur in the response; unset for none."""
    seed: Annotated[int, Meta(ge=0, lt=1 << 62)] | msgspec.UnsetType = msgspec.UNSET
    """Makes the group's samples repeatable, whatever server takes it; unset to draw from the server's own stream."""

    @property
    def extras(self) -> dict[str, float]:
        """`min_p` and `presence_penalty`, 0 if unset."""
        values = {"min_p": self.min_p, "presence_penalty": self.presence_penalty}
        return {name: 0.0 if value is msgspec.UNSET else value for name, value in values.items()}


class RewardPart(Message, frozen=True, kw_only=True):
    """One part of a combined reward (`services.contracts.rewards`)."""

    name: _Name
    """What metrics call it; unique among the parts."""
    kind: _Text
    """Name of the reward that judges it; `row` for the question's own kind, `length` for the response's length."""
    weight: Annotated[float, Meta(ge=0, le=1e6)]
    """Share of the reward, relative to the other parts' weights."""
    threshold: Annotated[float, Meta(ge=0, le=1)] | msgspec.UnsetType = msgspec.UNSET
    """Its least reward that counts as solved; unset if the part does not decide that."""
    tests: _Text | msgspec.UnsetType = msgspec.UNSET
    """Settings of its kind, instead of the question's `tests`."""


class PromptTask(Message, frozen=True, kw_only=True):
    """A question to be sampled. Fed by the learner's prompt feeder on `prompts`."""

    run_id: str
    group_id: _Name
    """Unique within the run: `<purpose>-<sequence>`; evaluations carry the evaluated step as well."""
    sequence: _Count
    """Position in the run's feeding order, from 0. Train and evaluation tasks count separately."""
    purpose: Purpose
    question: Question
    sampling: Sampling
    min_weight_version: _Count
    """A rollout server holds the task until its weights are at least this version."""
    step: _Count
    """The training step (from 0) that this group is fed for, or the step that is evaluated."""
    max_prompt_tokens: _Tokens
    """Longer prompts, in tokens, become faults and are not truncated."""
    fed_at: _Seconds
    """Unix time in seconds at which the task was fed."""
    is_teacher: bool | msgspec.UnsetType = msgspec.UNSET
    """True if the prompt is the self-teacher's, which may have other arguments of the chat template."""
    rewards: Annotated[tuple[RewardPart, ...], Meta(min_length=1, max_length=MAX_PARTS)] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    """The parts of which the reward consists; unset if the question's kind is all."""


class VersionSpan(Message, frozen=True, array_like=True):
    """Response tokens [start, end) were sampled by weights of `version`."""

    version: _Count
    start: Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
    end: _Tokens


class Thinking(Message, frozen=True, kw_only=True):
    """The reasoning that a response begins with. Its answer is what follows."""

    num_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
    """Tokens up to and including the closing marker; all of the response if `closed` is false, 0 without thinking."""
    num_characters: Annotated[int, Meta(ge=0, le=MAX_TEXT)]
    """As `num_tokens`, in characters of the text."""
    closed: bool
    """False if the thinking never ends, so that there is no answer."""


class Rollout(Message, frozen=True, kw_only=True):
    """One sampled response with its behaviour log-probabilities.

    For status `ok`, `token_ids` and `logprobs` have one entry per response token (including end-of-sequence if it was
    sampled), and the spans of `weight_versions` cover them without gap or overlap.
    """

    status: SampleStatus
    text: _Text = ""
    """The response as text, without control tokens of sequence and chat template; tags are kept."""
    token_ids: TokenIds = msgspec.field(default_factory=TokenIds)
    logprobs: LogProbs = msgspec.field(default_factory=LogProbs)
    """Natural-log probability of each token under the distribution that it was drawn from (temperature, cuts)."""
    weight_versions: Annotated[list[VersionSpan], Meta(max_length=MAX_TOKENS)] = []
    finish_reason: FinishReason = "stop"
    """`length` marks a response that was truncated at the limit."""
    fault: _Text = ""
    """What went wrong, if the status is not `ok`."""
    thinking: Thinking | msgspec.UnsetType = msgspec.UNSET
    """Set if the run separates thinking from answers (`model.thinking`)."""

    @property
    def answer(self) -> str | None:
        """What rewards and teachers read: the text after the thinking, or the whole text if the run does not separate
        them; None if the thinking never ends."""
        if self.thinking is msgspec.UNSET:
            return self.text
        return self.text[self.thinking.num_characters :].lstrip() if self.thinking.closed else None

    def check(self) -> None:
        """Raise `MalformedMessageError` if lengths or spans are inconsistent."""
        num_tokens = len(self.token_ids)
        if self.status != "ok":
            return
        if len(self.logprobs) != num_tokens:
            raise MalformedMessageError(f"rollout has {num_tokens} token_ids but {len(self.logprobs)} logprobs.")
        position = 0
        for span in self.weight_versions:
            if span.start != position or span.end <= span.start:
                raise MalformedMessageError("rollout.weight_versions leaves a gap, overlaps or is empty.")
            position = span.end
        if position != num_tokens:
            raise MalformedMessageError(f"rollout.weight_versions covers {position} of {num_tokens} tokens.")

    def check_numbers(self) -> None:
        """Raise `MalformedMessageError` for an invalid log-probability. For the service that computes with them."""
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
    rollouts: Annotated[list[Rollout], Meta(max_length=MAX_SAMPLES)]
    """Exactly `task.sampling.num_samples` rollouts."""
    server: _Name
    """Instance name of the rollout server."""
    seconds: _Seconds
    """Time from taking the task to its last token."""

    @property
    def run_id(self) -> str:
        return self.task.run_id

    def check(self) -> None:
        name, sampling = self.task.group_id, self.task.sampling
        if len(self.rollouts) != sampling.num_samples:
            raise MalformedMessageError(f"group {name} has {len(self.rollouts)} rollouts, not {sampling.num_samples}.")
        num_tokens = max((len(rollout.token_ids) for rollout in self.rollouts), default=0)
        if num_tokens > sampling.max_response_tokens:
            raise MalformedMessageError(
                f"group {name} has a response of {num_tokens} tokens, over its limit of {sampling.max_response_tokens}."
            )
        num_tokens = len(self.prompt_token_ids)
        if num_tokens > self.task.max_prompt_tokens:
            raise MalformedMessageError(
                f"group {name} has a prompt of {num_tokens} tokens, over its limit of {self.task.max_prompt_tokens}."
            )
        if not num_tokens and any(rollout.status == "ok" for rollout in self.rollouts):
            raise MalformedMessageError(f"group {name} has responses but no prompt_token_ids.")
        for rollout in self.rollouts:
            rollout.check()

    def check_vocabulary(self, size: int) -> None:
        """Raise `MalformedMessageError` for a token outside the vocabulary. For the service that looks tokens up."""
        pieces = [(f"rollout {number}", rollout.token_ids) for number, rollout in enumerate(self.rollouts)]
        for what, token_ids in [("the prompt", self.prompt_token_ids), *pieces]:
            largest = max(token_ids, default=0)
            if largest >= size:
                raise MalformedMessageError(
                    f"{what} of group {self.task.group_id} has token {largest}, beyond the vocabulary of {size}."
                )


class Verdict(Message, frozen=True, kw_only=True):
    """The verifier's judgement of one rollout."""

    status: SampleStatus
    """`infrastructure_fault`: the verifier itself failed; the sample is excluded from its group, never scored 0."""
    reward: Annotated[float, Meta(ge=0, le=1)] = 0.0
    correct: bool = False
    """All-or-nothing, by the reward function, not by the run's success threshold."""
    parsed_answer: _Text = ""
    format_ok: bool = False
    feedback: _Text = ""
    """Short text that tells the model what was wrong; empty for none."""
    seconds: _Seconds = 0.0
    fault: _Text = ""
    solved: bool | msgspec.UnsetType = msgspec.UNSET
    """Whether the rollout counts as correct in training; unset if the run's success threshold decides."""
    parts: Annotated[dict[str, float], Meta(max_length=MAX_PARTS)] | msgspec.UnsetType = msgspec.UNSET
    """Reward of each part of a combined reward, by name."""

    def solves(self, success_threshold: float) -> bool:
        """Whether the rollout counts as correct in training."""
        return self.reward >= success_threshold if self.solved is msgspec.UNSET else self.solved


class ScoredGroup(Message, frozen=True, kw_only=True):
    """A completed group with one verdict per rollout. Published by a verifier on `scored` or `evaluated`."""

    group: CompletedGroup
    verdicts: Annotated[list[Verdict], Meta(max_length=MAX_SAMPLES)]
    verifier: _Name
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


class DeadLetter(Message, frozen=True, kw_only=True):
    """Bytes that no service could read or process, with the reason. Published on `dead`."""

    stream: str
    message_id: str
    reason: str
    payload: bytes
    at: float

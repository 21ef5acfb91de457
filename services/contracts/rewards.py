"""The run configuration's section `rewards`: what a response's reward consists of (docs/rewards.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Final

import msgspec
from pydantic import Field

from services.contracts.messages import MAX_PARTS, RewardPart
from services.contracts.model import Name, Positive, Section
from services.contracts.questions.forms import FORMS, FormatSettings, JudgeSettings, LengthSettings, Requirement
from services.contracts.questions.source import SourceName

ROW: Final = "row"
LENGTH: Final = "length"
JUDGE: Final = "judge"
SETTINGS: Final[Mapping[str, frozenset[str]]] = {
    JUDGE: frozenset({"rubric", "scale", "threshold"}),
    LENGTH: frozenset({"max_tokens", "buffer_tokens"}),
    "format": frozenset({"requires", "pattern"}),
}
"""The fields that a kind takes in addition to those of every part."""
_KINDS: Final = (ROW, *SETTINGS, "http")
_OF_ROWS: Final = frozenset(FORMS) - set(_KINDS)
"""Kinds that compare with a row's own answer."""
BUFFER_SHARE: Final = 5
"""By default the length penalty begins where this part of the limit is left, as in DAPO: 4,096 of 20,480 tokens."""


Score = Annotated[float, Field(ge=-1000, le=1000)]


class RewardSection(Section):
    """One part of the reward, which is the parts' mean by weight."""

    kind: Name
    """`row` for the row's own kind, `judge`, `length`, `format`, `http`, or the kind of an installed package."""
    name: SourceName | None = None
    """What metrics call it; null: its kind."""
    weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Share of the reward, relative to the other parts' weights; 0: it is reported, and may decide."""
    decides: bool = False
    """A response must satisfy this part to be correct, for routing and in evaluations. If no part says true, `row`
    decides."""
    rubric: Annotated[str, Field(min_length=1, max_length=20_000, pattern=r"\S")] | None = None
    """Kind `judge`: what the judge looks at, and what earns which score; null: how well the response answers the
    prompt, compared with the row's answer if it has one."""
    scale: tuple[Score, Score] | None = None
    """Kind `judge`: lowest and highest score; null: 0 and 10. The reward is the place between them."""
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Kind `judge`: reward from which on a response is correct; null: `objective.success_threshold`."""
    max_tokens: Positive | None = None
    """Kind `length`: tokens from which on the reward is 0; null: `rollout.max_response_tokens`."""
    buffer_tokens: Positive | None = None
    """Kind `length`: tokens before `max_tokens` over which the reward falls from 1 to 0; null: a fifth of it."""
    requires: tuple[Requirement, ...] = ()
    """Kind `format`: `answer` (one pair of answer tags with text), `boxed` (a complete last box), `thinking`
    (reasoning that ends)."""
    pattern: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    """Kind `format`: a regular expression (Python's `re`) that is found in the answer."""

    @property
    def label(self) -> str:
        return self.name or self.kind

    def tests(self, max_response_tokens: int, success_threshold: float) -> str | msgspec.UnsetType:
        """The settings of its kind, as the verifier reads them."""
        settings: msgspec.Struct
        if self.kind == LENGTH:
            limit = self.max_tokens or max_response_tokens
            settings = LengthSettings(max_tokens=limit, buffer_tokens=self.buffer_tokens or -(-limit // BUFFER_SHARE))
        elif self.kind == JUDGE:
            given = {"rubric": self.rubric, "scale": self.scale, "threshold": self.threshold or success_threshold}
            settings = JudgeSettings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        elif self.kind == "format":
            settings = FormatSettings(requires=list(self.requires), pattern=self.pattern or "")
        else:
            return msgspec.UNSET
        return msgspec.json.encode(settings).decode()

    def conflicts(self, max_response_tokens: int, *, separates_thinking: bool) -> Iterator[str]:
        """One sentence a combination that cannot work; it begins with the field and ends with the remedy."""
        yield from self._conflicts_of_kind()
        if self.kind == LENGTH:
            limit = self.max_tokens or max_response_tokens
            if limit > max_response_tokens:
                yield (
                    f"max_tokens is {limit}, but rollout.max_response_tokens cuts responses at {max_response_tokens}; "
                    "lower it or remove it"
                )
            if self.buffer_tokens is not None and self.buffer_tokens > limit:
                yield f"buffer_tokens is {self.buffer_tokens}, more than the limit of {limit} tokens; lower it"
            if self.decides:
                yield "decides is true, but a length says nothing about the answer; remove it"
        if "thinking" in self.requires and not separates_thinking:
            yield "requires has thinking, but model.thinking is null; set model.thinking, or remove it"
        if self.kind == "format" and not self.requires and self.pattern is None:
            yield "kind is format, which requires nothing; set requires or pattern"
        if self.threshold is not None and not self.decides:
            yield f"threshold is {self.threshold}, but the part does not decide; set decides: true, or remove it"
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            yield f"scale is {list(self.scale)}, whose second number is not the larger one; correct it"
        if self.pattern is not None:
            yield from self._conflicts_of_pattern(self.pattern)

    def _conflicts_of_kind(self) -> Iterator[str]:
        takes = SETTINGS.get(self.kind, frozenset())
        for field in sorted(frozenset[str]().union(*SETTINGS.values()) - takes):
            if (value := getattr(self, field)) != type(self).model_fields[field].default:
                yield f"{field} is {value!r}, but kind {self.kind} does not take it; remove it"
        if self.kind in _OF_ROWS:
            yield f"kind is {self.kind}, which reads a row's answer; give it to the rows, and use kind row"
        elif self.kind not in _KINDS and (near := get_close_matches(self.kind.strip().casefold(), _KINDS, 1, 0.8)):
            yield f"kind is {self.kind!r}; write {near[0]}"

    def _conflicts_of_pattern(self, pattern: str) -> Iterator[str]:
        try:
            if re.compile(pattern).search("") is not None:
                yield f"pattern is {pattern[:60]!r}, which an empty answer satisfies; require some text"
        except (re.error, RecursionError, OverflowError) as error:
            yield f"pattern is {pattern[:60]!r}, not a regular expression ({error}); correct it"


Rewards = Annotated[tuple[RewardSection, ...], Field(max_length=MAX_PARTS)]


def reward_conflicts(
    rewards: Sequence[RewardSection], max_response_tokens: int, *, separates_thinking: bool
) -> Iterator[str]:
    """One sentence per combination that cannot work; it begins with the field and ends with the remedy."""
    labels = [part.label for part in rewards]
    for number, part in enumerate(rewards):
        for conflict in part.conflicts(max_response_tokens, separates_thinking=separates_thinking):
            yield f"rewards.{number}.{conflict}"
        if part.label in labels[:number]:
            yield f"rewards.{number}.name is {part.label!r}, as another one's; set names that differ"
        if part.kind == ROW and any(other.kind == ROW for other in rewards[:number]):
            yield f"rewards.{number}.kind is row for a second time; remove it"
    if rewards and not any(part.weight for part in rewards):
        yield "rewards.0.weight is 0, as every other weight; give one part a weight above 0"
    if rewards and not any(_deciding(rewards)):
        yield "rewards.0.decides is not true for any part; add a part of kind row, or set decides for one part"


def train_parts(
    rewards: Sequence[RewardSection], success_threshold: float, max_response_tokens: int
) -> tuple[RewardPart, ...] | msgspec.UnsetType:
    """The parts as a task carries them; unset without `rewards`."""
    decide = _deciding(rewards)
    return (
        tuple(
            RewardPart(
                name=part.label,
                kind=part.kind,
                weight=part.weight,
                threshold=success_threshold if decides else msgspec.UNSET,
                tests=part.tests(max_response_tokens, success_threshold),
            )
            for part, decides in zip(rewards, decide, strict=True)
        )
        or msgspec.UNSET
    )


def deciding_parts(parts: tuple[RewardPart, ...] | msgspec.UnsetType) -> tuple[RewardPart, ...] | msgspec.UnsetType:
    """Those that say what is correct, which is all that an evaluation counts, with equal weights."""
    if parts is msgspec.UNSET:
        return parts
    return tuple(msgspec.structs.replace(part, weight=1.0) for part in parts if part.threshold is not msgspec.UNSET)


def _deciding(rewards: Sequence[RewardSection]) -> list[bool]:
    chosen = any(part.decides for part in rewards)
    return [part.decides if chosen else part.kind == ROW for part in rewards]

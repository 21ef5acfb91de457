"""The registry of rewards: maps a question's kind to what judges a reply.

    @register("mcq")
    def judge_mcq(question: Question, response_text: str, truncated: bool) -> Judgement: ...

Such a reward is pure and synchronous, and must not raise for any text that a model may write. With `supervised=True` it
runs in a worker process with a time limit (`services.verifier.workers.pool`), for parsers that may hang, crash or use
too much memory.

A reward that waits for something outside the process, such as the sandbox or the network, is opened once per verifier:

    @register_resource("http")
    @asynccontextmanager
    async def open_http() -> AsyncIterator[Opened]: ...

If opening raises `UnavailableError`, only the questions of that kind cannot be judged.

The kinds are those of `services.contracts.questions.forms`, which says what a row of each kind must contain. A kind
without a form, whose bad rows would fail only once they are judged, cannot be added.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Final, Protocol

import msgspec

from services.contracts.errors import ConfigurationError, QuestionError
from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.contracts.questions.forms import FORMS

ENTRY_POINTS: Final = "turnout.rewards"
BUILT_IN: Final = tuple(FORMS)
"""Kinds whose rows can be checked. A module of the same name in this package registers the reward."""
LONGEST_TEXT: Final = 4000


RewardFunction = Callable[[Question, str, bool], Any]


class AsynchronousReward(Protocol):
    """Judges replies by waiting for something outside this process: sandbox, endpoint or worker pool."""

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement:
        """The judgement. Raises `InfrastructureError` if what it waits for failed, after the reward's own retries."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A reward that is ready to judge."""

    reward: AsynchronousReward
    details: Mapping[str, str] = field(default_factory=dict)
    """Details for the verifier's heartbeat."""
    waiting_for: Callable[[], str] = lambda: ""
    """What it waits for while nothing can be judged, for messages about stalls; empty while it works."""
    has_threshold: bool = False
    """Its questions say what is correct, in training as in evaluations (`Verdict.solved`)."""


Opener = Callable[[], AbstractAsyncContextManager[Opened]]


@dataclass(frozen=True, slots=True)
class Reward:
    """One entry: either a function or an opener."""

    kind: str
    function: RewardFunction | None = None
    open: Opener | None = None
    supervised: bool = False
    warm: Callable[[], None] | None = None
    """Loads heavy libraries, once, in the process from which all workers are forked."""


_REWARDS: dict[str, Reward] = {}


def register(
    kind: str, *, supervised: bool = False, warm: Callable[[], None] | None = None
) -> Callable[[RewardFunction], RewardFunction]:
    """Decorator that registers a function. Raises `ConfigurationError` if the kind is taken."""

    def add(function: RewardFunction) -> RewardFunction:
        _add(Reward(kind, function, supervised=supervised, warm=warm))
        return function

    return add


def register_resource(kind: str) -> Callable[[Opener], Opener]:
    """Like `register`, for a reward that must be opened: a function that returns an asynchronous context manager."""

    def add(opener: Opener) -> Opener:
        _add(Reward(kind, open=opener))
        return opener

    return add


def _add(reward: Reward) -> None:
    known = _REWARDS.setdefault(reward.kind, reward)
    if _name(known) != _name(reward):
        raise ConfigurationError(f"Two rewards are registered for kind {reward.kind!r}.", remedy="Rename one of them.")
    _REWARDS[reward.kind] = reward


def _name(reward: Reward) -> str:
    return (reward.function or reward.open).__qualname__  # type: ignore[union-attr]


def built_in() -> dict[str, Reward]:
    """The platform's own rewards by kind."""
    return {kind: load(kind) for kind in BUILT_IN}


def own_kinds() -> list[str]:
    """Kinds that installed packages provide (entry point group `turnout.rewards`). Does not load their code.

    Raises:
        ConfigurationError: a package provides a built-in kind.
    """
    names = sorted({point.name for point in entry_points(group=ENTRY_POINTS)})
    for name in names:
        if name in BUILT_IN:
            raise ConfigurationError(
                f"An installed package provides a reward named {name!r}, which is built in.",
                remedy=f"Rename the package's entry point in group {ENTRY_POINTS}.",
            )
    return names


def load(kind: str) -> Reward:
    """A reward of the platform or of an installed package. Call this for packages only in worker processes, since
    importing one may raise anything."""
    if kind in BUILT_IN:
        importlib.import_module(f"services.verifier.rewards.{kind}")
        return _REWARDS[kind]
    for point in entry_points(group=ENTRY_POINTS, name=kind):
        return Reward(kind, point.load(), supervised=True)
    raise LookupError(f"no installed package provides a reward named {kind!r}")


def checked(result: Any) -> Judgement:
    """A reward's result as a `Judgement`; a plain number (or bool) counts as correct if it is 1.

    Raises:
        QuestionError: the result is neither a judgement nor a number, or the reward is outside [0, 1].
    """
    if isinstance(result, bool | int | float):
        result = Judgement(reward=float(result), correct=float(result) >= 1.0)
    if not isinstance(result, Judgement):
        raise QuestionError(
            f"The reward returned a {type(result).__name__}.", remedy="Return a Judgement or a number from 0 to 1."
        )
    if not (math.isfinite(result.reward) and 0.0 <= result.reward <= 1.0):
        raise QuestionError(f"The reward returned {result.reward}.", remedy="Return a reward from 0 to 1.")
    return msgspec.structs.replace(
        result, parsed_answer=_sendable(result.parsed_answer), feedback=_sendable(result.feedback)
    )


def _sendable(text: str) -> str:
    """`text` without unpaired surrogates (which JSON escapes can contain), at most `LONGEST_TEXT` characters."""
    return text[:LONGEST_TEXT].encode("utf-8", "replace").decode()

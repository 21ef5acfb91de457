"""Makes batches from scored groups: which group is trained in which step, replaced or dropped, and why. Pure decisions.

Groups are decided strictly in feeding order, whatever order they arrive in; early ones wait in a buffer. The batches
therefore depend on the groups alone: a learner that replays them after a crash makes the same batches, and long
responses are not deferred in favour of short ones. The feeder's credit bounds how far sampling runs ahead.

With `training.refill`, a step passes over groups that teach nothing (DAPO's dynamic sampling, arXiv 2503.14476, section
3.2) until it has passed over that many; from then on it takes what comes, so that every step has `prompts_per_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from services.contracts.evaluations.tasks import usable_samples
from services.contracts.messages import ScoredGroup
from services.contracts.run_config import RunConfig
from services.learner.groups.curriculum import Curriculum, CurriculumState
from services.learner.groups.ledger import DropReason, Ledger
from services.learner.groups.routed import share_correct, teaches
from services.runtime.queue.queue import Delivery

Scored = Delivery[ScoredGroup]
WHY_LOST: Mapping[DropReason, str] = {
    "lost": "the message was unreadable",
    "fatal": "the message crashed the services that processed it; see their logs",
}


def oldest_version(group: ScoredGroup) -> int | None:
    """Oldest weight version among the tokens of usable rollouts; None if there are no tokens."""
    pairs = zip(group.group.rollouts, usable_samples(group), strict=True)
    versions = [rollout.oldest_version for rollout, usable in pairs if usable]
    return min((version for version in versions if version is not None), default=None)


def drop_reason(group: ScoredGroup, current_version: int, max_staleness: int) -> DropReason | None:
    """Why `group` cannot be trained on weights of `current_version`; None if it can."""
    num_usable = sum(usable_samples(group))
    if num_usable == 0:
        return "faulty"
    if num_usable < min(2, group.group.task.sampling.num_samples):
        return "too_few"
    oldest = oldest_version(group)
    if oldest is not None and oldest < current_version - max_staleness:
        return "stale"
    return None


@dataclass(frozen=True, slots=True)
class Batch:
    """The groups of one training step, in feeding order."""

    step: int
    """From 1; also the version of the weights that the step makes."""
    groups: list[ScoredGroup]
    num_replaced: int = 0
    """Groups that the step passed over because they would have taught nothing."""
    pools: Mapping[str, int] = field(default_factory=dict)
    """Waiting questions by pool, with a curriculum."""


@dataclass(slots=True)
class Batcher:
    """Collects scored groups and hands out batches of `prompts_per_step`."""

    prompts_per_step: int
    max_staleness: int
    ledger: Ledger
    lost: Mapping[int, DropReason] = field(default_factory=dict)
    """Sequence numbers that will never arrive, and why."""
    refill: int = 0
    """Groups that a step may pass over because they teach nothing."""
    teaches: Callable[[ScoredGroup], bool] = lambda _: True
    """Must depend on the group alone, so that a replay decides alike. Asked only while a step may pass over more."""
    curriculum: Curriculum | None = None
    """Learns of every decision, in order."""
    success_threshold: float = 0.5
    """Reward that counts as correct for the curriculum."""
    boundary: Ledger = field(init=False)
    """The ledger at the end of the last complete batch, as a checkpoint of that step contains it."""
    curriculum_boundary: CurriculumState | None = None
    """Likewise the curriculum's state."""
    last_drop: tuple[DropReason, str] | None = None
    """Reason and first fault text of the most recent drop, for messages."""
    num_dropped_in_a_row: int = 0
    untrained: list[tuple[ScoredGroup, str]] = field(default_factory=list)
    """Groups dropped or replaced since `record_untrained` last emptied this, and their outcome (`replaced`,
    `dropped_stale`, ...), without those that never arrived."""
    _waiting: dict[int, Scored] = field(default_factory=dict)
    _chosen: list[ScoredGroup] = field(default_factory=list)
    _consumed: list[Scored] = field(default_factory=list)
    _again: list[Scored] = field(default_factory=list)
    _settled: list[Scored] = field(default_factory=list)
    _next: int = -1
    _num_replaced: int = 0

    @classmethod
    def for_run(cls, config: RunConfig, ledger: Ledger) -> Batcher:
        training = config.training
        return cls(
            training.prompts_per_step,
            training.max_staleness,
            ledger,
            refill=training.refill,
            teaches=partial(teaches, config=config),
            success_threshold=config.objective.success_threshold,
        )

    def __post_init__(self) -> None:
        self._next = self.ledger.decided
        self.boundary = self.ledger.copy()

    @property
    def next_sequence(self) -> int:
        """The next group to decide, and the only one that a batch waits for."""
        return self._next

    @property
    def num_chosen(self) -> int:
        return len(self._chosen)

    @property
    def num_waiting(self) -> int:
        """Groups that arrived before their turn."""
        return len(self._waiting)

    def has(self, sequence: int) -> bool:
        return sequence < self._next or sequence in self._waiting

    def offer(self, delivery: Scored) -> None:
        """Take a delivered group. A duplicate is acknowledged together with the first delivery and not before: after a
        failover of the queue server it may be the only copy left."""
        sequence = delivery.message.group.task.sequence
        if self.has(sequence):
            self._again.append(delivery)
        else:
            self._waiting[sequence] = delivery

    def take(self, step: int) -> Batch | None:
        """The batch of `step` (from 1), or None while groups are missing. Also decides and counts drops and
        replacements."""
        while len(self._chosen) < self.prompts_per_step:
            if self.curriculum is not None:
                self.curriculum.extend(step - 1, self.ledger.num_untrained)
            if self._next in self.lost and self._next not in self._waiting:
                reason = self.lost[self._next]
                self._drop(reason, WHY_LOST[reason])
                continue
            delivery = self._waiting.pop(self._next, None)
            if delivery is None:
                return None
            self._consumed.append(delivery)
            self._decide(delivery.message, step)
        groups, self._chosen = self._chosen, []
        num_replaced, self._num_replaced = self._num_replaced, 0
        self.ledger.trained += len(groups)
        self.boundary = self.ledger.copy()
        if self.curriculum is not None:
            self.curriculum.finish(step)
            self.curriculum.extend(step, self.ledger.num_untrained)
            self.curriculum_boundary = self.curriculum.state()
        self._settled += self._consumed
        self._consumed = []
        again, self._again = self._again, []
        for delivery in again:
            decided = delivery.message.group.task.sequence < self._next
            (self._settled if decided else self._again).append(delivery)
        return Batch(step, groups, num_replaced, self.curriculum.sizes() if self.curriculum is not None else {})

    def take_settled(self) -> list[Scored]:
        """Deliveries decided in complete batches since the last call. Acknowledge them once a checkpoint of the last
        batch's step is durable."""
        settled, self._settled = self._settled, []
        return settled

    def _decide(self, group: ScoredGroup, step: int) -> None:
        """Choose, replace or drop the group whose turn it is."""
        unfit = drop_reason(group, step - 1, self.max_staleness)
        if unfit is not None:
            self._drop(unfit, _first_fault(group))
            self.untrained.append((group, f"dropped_{unfit}"))
            return
        if self.curriculum is not None:
            self.curriculum.decide(self._next, share_correct(group, self.success_threshold))
        if self._num_replaced < self.refill and not self.teaches(group):
            self.ledger.replaced += 1
            self._num_replaced += 1
            self.untrained.append((group, "replaced"))
        else:
            self._chosen.append(group)
        self._next += 1
        self.num_dropped_in_a_row = 0

    def _drop(self, reason: DropReason, fault: str) -> None:
        if self.curriculum is not None:
            self.curriculum.decide(self._next, None)
        self.ledger.dropped[reason] += 1
        self._next += 1
        self.num_dropped_in_a_row += 1
        self.last_drop = (reason, fault)


def _first_fault(group: ScoredGroup) -> str:
    faults = [rollout.fault for rollout in group.group.rollouts] + [verdict.fault for verdict in group.verdicts]
    return next((fault for fault in faults if fault), "")

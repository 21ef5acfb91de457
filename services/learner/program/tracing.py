"""The learner's part of the traces: groups that were trained, replaced or dropped."""

from __future__ import annotations

import time

from services.learner.groups.batcher import Batch, Batcher, oldest_version
from services.runtime.traces import record


def record_trained(batch: Batch, began: float) -> None:
    """Record each group's training span, from Unix time `began` until now, and the span of the group as a whole."""
    ended = time.time()
    for scored in batch.groups:
        task, oldest = scored.group.task, oldest_version(scored)
        staleness = None if oldest is None else batch.step - 1 - oldest
        record("train", task, began, ended, trained_step=batch.step, staleness=staleness)
        record("group", task, task.fed_at, ended, whole=True, outcome="trained", question_id=task.question.id)


def record_untrained(batcher: Batcher) -> None:
    """Record the span of each group dropped or replaced since the last call."""
    untrained, batcher.untrained = batcher.untrained, []
    for scored, outcome in untrained:
        task = scored.group.task
        record("group", task, task.fed_at, time.time(), whole=True, outcome=outcome, question_id=task.question.id)

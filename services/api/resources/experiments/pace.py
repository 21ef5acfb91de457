"""When an experiment will have ended."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from statistics import median

from services.api.storage.runs import Run
from services.contracts.records import ExperimentRun
from services.contracts.states import ACTIVE_STATES


def seconds_left(items: Sequence[ExperimentRun], num_runs: int, runs: Collection[Run]) -> float | None:
    """Seconds until the last run ends, if as many runs as now train at once. None before the first step.

    A step takes as long as in the median of the runs that have succeeded, evaluations included; before there is one, as
    in those that train. The time since the experiment began would count hours in which it was stopped.

    Args:
        num_runs: runs in all; `items` lacks those for which tuning has yet to choose settings.
    """
    now = time.time()
    ended = [_seconds_per_step(run, run.finished_at or now) for run in runs if run.state == "succeeded"]
    active = [run for run in runs if run.state in ACTIVE_STATES]
    known = [seconds for seconds in ended or [_seconds_per_step(run, now) for run in active] if seconds is not None]
    if not known:
        return None
    steps = sum(item.num_steps - item.step for item in items if item.state not in ("succeeded", "failed"))
    steps += max((item.num_steps for item in items), default=0) * (num_runs - len(items))
    return median(known) * steps / max(1, len(active))


def _seconds_per_step(run: Run, until: float) -> float | None:
    return (until - run.started_at) / run.step if run.step and run.started_at is not None else None

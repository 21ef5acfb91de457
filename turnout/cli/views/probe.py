"""What a probe found, for a terminal."""

from __future__ import annotations

from typing import Final

from services.contracts.events import Information, TeacherGap
from services.contracts.records import Probe
from turnout.cli.output import duration

NAMES: Final[dict[Information, str]] = {
    "solution": "sibling's solution",
    "feedback": "feedback",
    "solution_and_feedback": "solution and feedback",
    "reference": "row's solution",
}
"""Kinds of teacher information, in words."""


def probe_rows(probe: Probe) -> list[list[str]]:
    """Names and values, in reading order."""
    found = probe.result
    k = found.num_samples
    rows = [
        ["questions", f"{found.num_questions} with {k} rollouts each, in {found.seconds:.0f} s"],
        [f"avg@{k}", f"{found.accuracy:.1%}"],
        [f"pass@{k}", f"{found.pass_at_k:.1%}"],
        ["questions all right", f"{found.all_correct_ratio:.1%}"],
        ["questions mixed", f"{found.mixed_ratio:.1%}"],
        ["questions all wrong", f"{found.all_wrong_ratio:.1%}"],
        ["well formed", f"{found.well_formed_ratio:.1%}"],
        ["response tokens", f"{found.response_tokens_mean:.1f} mean, {found.response_tokens_p95} at 95%"],
        ["cut at the limit", f"{found.truncated_ratio:.1%}"],
        *([f"gap: {NAMES[gap.information]}", _gap(gap)] for gap in probe.gaps),
    ]
    if found.num_faults:
        rows.append(["could not be judged", f"{found.num_faults} rollouts"])
    if probe.seconds_per_step is not None and probe.hours is not None:
        whole = duration(3600 * probe.hours)
        time = f"{probe.seconds_per_step:.2f} s per step, {whole} for {probe.planned_steps} steps"
        rows.append(["time", f"{time}, without evaluations"])
    return rows


def _gap(gap: TeacherGap) -> str:
    return (
        f"{100 * gap.points:+.1f} points: {gap.untaught_accuracy:.1%} without, {gap.taught_accuracy:.1%} with "
        f"({gap.num_questions} questions)"
    )

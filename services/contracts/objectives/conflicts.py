"""Settings of an objective that could not do what they say together."""

from __future__ import annotations

from collections.abc import Iterator

from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.objectives.settings import ObjectiveSettings


def settings_without_use(objective: ObjectiveSettings) -> Iterator[str]:
    """One sentence per combination; it begins with the field and ends with the remedy."""
    if objective.surrogate == "cispo" and (objective.dual_clip is not None or objective.ratio == "sequence"):
        field = "dual_clip" if objective.dual_clip is not None else "ratio"
        yield (
            f"objective.{field} is {getattr(objective, field)}, but objective.surrogate cispo clips every token's "
            "own ratio; remove one of the two"
        )
    for field in ("engine_mask_low", "engine_mask_high"):
        value = getattr(objective, field)
        if objective.engine_mask == "none" and value != type(objective).model_fields[field].default:
            yield f"objective.{field} is {value}, but objective.engine_mask is none; set it to token or sequence"
    for field, wanted in (("teacher_ema_rate", ("ema",)), ("teacher_every_steps", ("every", "gated"))):
        value = getattr(objective, field)
        if objective.teacher_update not in wanted and value != type(objective).model_fields[field].default:
            yield (
                f"objective.{field} is {value}, but objective.teacher_update is {objective.teacher_update}; remove it, "
                f"or set teacher_update to {' or '.join(wanted)}"
            )
    yield from _of_teacher(objective)
    yield from _of_headings(objective)
    if objective.weight_floor and OBJECTIVES[objective.name].weighting(objective) is None:
        yield (
            f"objective.weight_floor is {objective.weight_floor}, but all tokens have weight 1; remove it, or set "
            "objective.position_beta or question_weight"
        )
    if objective.demonstration == "reference" and objective.feedback == "alone":
        yield (
            "objective.demonstration is reference, but objective.feedback alone shows no solution; set feedback to "
            "with_solution"
        )
    readable = objective.feedback != "none" or objective.demonstration in ("reference", "none")
    if objective.routing == "failed_groups" and not readable:
        yield (
            "objective.routing is failed_groups, but without a correct rollout there is nothing for the teacher to "
            "read; set objective.feedback, or objective.demonstration to reference"
        )


def _of_headings(objective: ObjectiveSettings) -> Iterator[str]:
    """Headings of what the teacher does not read."""
    unread = []
    if objective.feedback == "none":
        unread.append(("teacher_feedback_heading", "objective.feedback is none"))
    if objective.feedback == "alone":
        unread.append(("teacher_solution_heading", "objective.feedback alone shows no solution"))
    elif objective.demonstration == "none":
        unread.append(("teacher_solution_heading", "objective.demonstration is none"))
    for field, why in unread:
        if getattr(objective, field) != type(objective).model_fields[field].default:
            yield f"objective.{field} is given, but {why}; remove it"


def _of_teacher(objective: ObjectiveSettings) -> Iterator[str]:
    """Those of another model as the teacher, and of what it reads."""
    path, feedback = objective.teacher_path, objective.feedback
    if path is not None and objective.teacher_update != "frozen":
        yield (
            f"objective.teacher_path is {path}, a model that no update changes, but objective.teacher_update is "
            f"{objective.teacher_update}; set it to frozen"
        )
    if objective.demonstrations > 1 and (feedback == "alone" or objective.demonstration == "none"):
        field = "feedback" if feedback == "alone" else "demonstration"
        yield (
            f"objective.demonstrations is {objective.demonstrations}, but objective.{field} "
            f"{getattr(objective, field)} shows no solution; remove it"
        )
    if objective.wrong_hint and (feedback == "alone" or objective.demonstration == "none"):
        field = "feedback" if feedback == "alone" else "demonstration"
        yield (
            f"objective.wrong_hint is {objective.wrong_hint}, but objective.{field} {getattr(objective, field)} shows "
            "no solution that a wrong one could replace; remove it"
        )
    if objective.demonstration != "none":
        return
    if path is None:
        yield (
            "objective.demonstration is none, so the self-teacher would read what the policy reads; remove it, or set "
            "objective.teacher_path"
        )
    if feedback in ("with_solution", "fallback"):
        yield f"objective.demonstration is none, but objective.feedback {feedback} shows a solution; set it to alone"
    if objective.demonstration_thinking != "cut":
        yield (
            f"objective.demonstration_thinking is {objective.demonstration_thinking}, but objective.demonstration is "
            "none; remove it"
        )

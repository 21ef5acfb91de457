"""What a run needs and which settings make it fit, for a terminal or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from services.contracts.planner import Gpus, Plan, Times, billions, usable
from services.contracts.sizing import GIB, published_bytes
from turnout.cli import output
from turnout.cli.terminal import say

LEARNER = {
    "weights": "weights",
    "optimizer": "optimizer (master copy, moments)",
    "gradients": "gradients",
    "buffers": "DeepSpeed's buffers",
    "teacher": "teacher",
    "reference": "initial model",
    "activations": "activations",
    "temporary": "logits, or one layer's backward pass",
    "teacher_states": "teacher states and token numbers",
    "publishing": "copy for cuda_ipc",
}
SERVER = {"weights": "weights", "incoming": "incoming weights", "engine": "engine (assumed)"}


def show_plan(plan: Plan, times: Sequence[Times], gpus: Gpus | None, as_json: bool) -> None:
    """Print a plan.

    Args:
        times: by the rates given; and, if a kind of GPU was given, by formula: fast and slow.
    """
    if as_json:
        output.show(values(plan, times, gpus), True, "")
        return
    output.print_table(["per GPU, at most", "GiB"], rows(plan))
    for sentence in sentences(plan, times, gpus):
        say(sentence)


def values(plan: Plan, times: Sequence[Times], gpus: Gpus | None) -> dict[str, Any]:
    """The plan in bytes and seconds."""
    given, *estimated = [asdict(item) | {"step": item.step(plan.config.training.max_staleness)} for item in times]
    return {
        "num_parameters": plan.shape.num_parameters,
        "learner": asdict(plan.learner) | {"total": plan.learner.total},
        "server": asdict(plan.server) | {"least": plan.server.least, "slots": plan.slots},
        "published_bytes": published_bytes(plan.config, plan.shape),
        "fits": plan.fits,
        "usable_bytes": None if gpus is None else usable(gpus),
        "changes": dict(plan.changes),
        "seconds": given,
        "estimated_seconds": estimated,
    }


def rows(plan: Plan) -> list[list[str]]:
    """Names and sizes, in reading order; what a run does not have is left out."""
    found, server = plan.learner, plan.server
    parts = [(f"learner: {text}", getattr(found, name)) for name, text in LEARNER.items()]
    parts.append(("learner: total", found.total))
    parts += [(f"server: {text}", getattr(server, name)) for name, text in SERVER.items()]
    parts += [
        (
            f"server: KV cache of one sequence ({server.sequence_tokens:,} tokens)",
            server.kv_token * server.sequence_tokens,
        ),
        ("server: total with one sequence", server.least),
        ("CPU memory of rank 0: copies", found.cpu),
    ]
    return [[text, f"{size / GIB:.2f}"] for text, size in parts if size]


def sentences(plan: Plan, times: Sequence[Times], gpus: Gpus | None) -> list[str]:
    """What follows from the sizes."""
    training = plan.config.training
    said = [f"{plan.config.model.path}: {billions(plan.shape.num_parameters)} parameters."]
    if plan.shape.teacher is not None:
        teacher = plan.config.objective.teacher_path
        said.append(f"{teacher}, the teacher: {billions(plan.shape.teacher.num_parameters)} parameters.")
    if gpus is not None:
        room = f"{gpus.count} x {gpus.bytes / GIB:.0f} GiB, of which {usable(gpus) / GIB:.1f} GiB each are usable"
        if plan.fits:
            said.append(f"The run fits on {room}.")
            served = plan.config.rollout.num_servers * plan.config.rollout.tensor_parallel_size
            served -= plan.config.rollout.share_gpu
            if (idle := gpus.count - training.num_ranks - served) > 0:
                said.append(f"{idle} of them remain, for example for rollout.num_servers.")
        else:
            said.append(f"The run does not fit on {room}. It fits with these settings, which the table is for:")
            said += [f"  --set {field}={json.dumps(value)}" for field, value in plan.changes.items()]
    if plan.config.rollout.share_gpu:
        said.append("Learner and rollout server use one GPU in turns (rollout.share_gpu), so each may take all of it.")
    if plan.slots is not None:
        most = plan.config.rollout.max_num_seqs
        said.append(
            f"A rollout server holds {plan.slots:,} sequences of full length (rollout.max_num_seqs is {most}); beyond "
            "that, vLLM preempts and recomputes."
        )
    if (given := _seconds(times[:1], training.max_staleness)) is not None:
        said.append(f"By the rates given, roughly: {given}.")
    if len(times) > 1:
        said.append(f"By formula, with assumed efficiencies: {_seconds(times[1:], training.max_staleness)}.")
    said.append("Sizes for GPUs are calculated, not measured.")
    return said


def _seconds(times: Sequence[Times], max_staleness: int) -> str | None:
    """Parts of a step, each as one number or as a range; None if no rate is known."""
    named = {"sampling": "sample", "training": "train", "push": "push"}
    parts = {name: [getattr(item, field) for item in times] for name, field in named.items()}
    known = {name: [value for value in found if value is not None] for name, found in parts.items()}
    if not any(known.values()):
        return None
    text = ", ".join(f"{name} {_span(found)}" for name, found in known.items() if found)
    steps = [step for item in times if (step := item.step(max_staleness)) is not None]
    return f"{text}; a step {_span(steps)}" if steps else text


def _span(seconds: Sequence[float]) -> str:
    return " to ".join(f"{value:.1f}" for value in seconds) + " s"

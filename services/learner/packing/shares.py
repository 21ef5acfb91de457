"""Decides which rank trains which sequences of a mini-batch."""

from __future__ import annotations

from collections.abc import Sequence

from services.learner.packing.sequence import TrainSequence


def share_of_rank(sequences: Sequence[TrainSequence], rank: int, num_ranks: int) -> list[int]:
    """Indices of the sequences that `rank` trains: one of `num_ranks` contiguous parts of nearly equal work.

    Siblings are neighbours and share their prompt, so most of them go to the same rank. A part differs from equal work
    by at most one sequence. All ranks compute the same parts.
    """
    costs = _costs(sequences)
    total, before, mine = max(1, sum(costs)), 0, []
    for index, cost in enumerate(costs):
        # A sequence belongs to the part that contains the middle of its work; `min` is for a last one without work.
        if min(num_ranks - 1, (2 * before + cost) * num_ranks // (2 * total)) == rank:
            mine.append(index)
        before += cost
    return mine


def _costs(sequences: Sequence[TrainSequence]) -> list[int]:
    """Approximate work of each sequence in forward tokens. A backward pass costs two forward passes; a prompt equal to
    the previous one costs nothing."""
    costs: list[int] = []
    last: list[int] | None = None
    last_teacher: list[int] | None = None
    for sequence in sequences:
        prompt, teacher, length = sequence.prompt_ids, sequence.teacher_prompt_ids, len(sequence.response_ids)
        cost = 0
        if sequence.route != "none":
            cost = 3 * (length if prompt == last else length + len(prompt))
            last = prompt
            if teacher is not None:
                cost += length if teacher == last_teacher else length + len(teacher)
                last_teacher = teacher
        costs.append(cost)
    return costs

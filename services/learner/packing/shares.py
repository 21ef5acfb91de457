"""Which rank trains which sequences of a mini-batch."""

from __future__ import annotations

from collections.abc import Sequence

from services.learner.packing.sequence import TrainSequence


def share_of_rank(sequences: Sequence[TrainSequence], rank: int, num_ranks: int) -> list[int]:
    """Indices of the sequences that `rank` trains: the row of all sequences cut into parts of nearly equal work.

    So neighbouring siblings, which share their prompts, mostly go to one rank; a part is off by one sequence
    at most. Alike on all ranks.
    """
    costs = _costs(sequences)
    total, before, mine = max(1, sum(costs)), 0, []
    for index, cost in enumerate(costs):
        # By the middle of its work; the last one may be without any.
        if min(num_ranks - 1, (2 * before + cost) * num_ranks // (2 * total)) == rank:
            mine.append(index)
        before += cost
    return mine


def _costs(sequences: Sequence[TrainSequence]) -> list[int]:
    """Roughly the work of each sequence after those before it, in forward tokens: a backward pass costs two forward
    passes, a prompt like the last one nothing."""
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

"""All response tokens of a mini-batch on one rank, laid end to end, and the micro-batches that visit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.contracts.errors import TurnoutError
from services.contracts.run_config import ObjectiveSection
from services.learner.packing.prefix_tree import grow, pack_tree, plan_trees
from services.learner.packing.rows import PackedBatch, dummy_batch, pad_rows, plan_rows, row_length
from services.learner.packing.sequence import TrainSequence
from services.learner.update.token_statistics import TokenStatistics

Reads = Literal["question", "solution", "wrong hint"]
"""Which prompt of a sequence a pass reads: the student's, or one of the teacher's."""


@dataclass(slots=True)
class Layout:
    """T response tokens of the routed, non-empty sequences of one rank, in the order of the sequences.

    Tensors are on the engine's device; real numbers are float32 (float64 if the model is).
    """

    rows: list[int]
    """Indices of the routed, non-empty sequences."""
    spans: dict[int, slice]
    """Place of each such sequence's tokens."""
    num_tokens: int
    """T."""
    targets: Tensor
    """Sampled token ids, [T], int64."""
    behaviour: Tensor
    """log mu, [T]."""
    old: Tensor | None
    """log pi_old, [T]; None if it is the student's own log-probability."""
    advantage: Tensor
    """[T]."""
    is_sdpo: Tensor
    """[T], bool."""
    shares: Tensor | None
    """What a token's loss counts for before the division by `Layout.denominator`, [T]; None: 1."""
    denominator: float
    """This rank's part of what the sum of all token losses is divided by."""
    begins: Tensor
    """Place of the first token of each token's response, [T], int64."""
    owner: Tensor
    """Number of the sequence that each token belongs to, [T], int64: index into `rows`."""
    sequence: Tensor | None
    """Mean log ratio of each token's response, [T]; filled in by each student pass. None for ratios by token."""
    kept: Tensor | None
    """Whether `engine_mask: sequence` keeps each token's response, [T], bool; filled in by each student pass. None for
    other masks."""
    reference: Tensor | None
    """Log-probability under the initial model, [T]; None if it is not asked for."""
    slots: Tensor
    """Place of each token among those with a teacher pass, or -1; [T], int64."""
    num_teacher_tokens: int
    is_hinted: Tensor
    """Whether a token with a teacher pass has one with a wrong hint too, [num_teacher_tokens], bool."""
    taught: NDArray[np.bool_]
    """Whether a token has a teacher pass, [T], in CPU memory."""
    difficulty: Tensor
    """`TrainSequence.difficulty`, [T]."""
    weights: Tensor
    """Dynamic weights, [T]; 1 until `update` sets them."""
    stats: TokenStatistics
    """What the passes find of each token."""

    def places(self) -> Tensor:
        """Place of each token in its response, from 0 for the first to 1 for the last, [T], float64."""
        places = [torch.linspace(0.0, 1.0, span.stop - span.start, dtype=torch.float64) for span in self.spans.values()]
        return torch.cat([torch.zeros(0, dtype=torch.float64), *places]).to(self.targets.device)


def check_sequences(sequences: Sequence[TrainSequence]) -> None:
    """Raise `TurnoutError` if a sequence's parts do not fit together."""
    for index, sequence in enumerate(sequences):
        if not sequence.prompt_ids or sequence.teacher_prompt_ids == []:
            raise TurnoutError(f"Sequence {index} has an empty prompt; there is nothing to predict its response from.")
        if len(sequence.behaviour_logprobs) != len(sequence.response_ids):
            raise TurnoutError(
                f"Sequence {index} has {len(sequence.response_ids)} response tokens "
                f"but {len(sequence.behaviour_logprobs)} behaviour_logprobs."
            )
        if sequence.route == "sdpo" and sequence.teacher_prompt_ids is None:
            raise TurnoutError(f"Sequence {index} is routed to SDPO without teacher_prompt_ids.")


def lay_out(
    sequences: Sequence[TrainSequence],
    old: Sequence[Tensor] | None,
    device: torch.device,
    dtype: torch.dtype,
    objective: ObjectiveSection | None = None,
    longest: int = 1,
) -> Layout:
    """The layout of a mini-batch. `old` has one tensor [num response tokens] a sequence, or is None. `objective` is
    needed for losses, not for scores; `longest` is `rollout.max_response_tokens`."""
    check_sequences(sequences)
    rows = [index for index, item in enumerate(sequences) if item.route != "none" and item.response_ids]
    lengths = [len(sequences[row].response_ids) for row in rows]
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    num_tokens = int(starts[-1])
    taught = np.repeat([sequences[row].teacher_prompt_ids is not None for row in rows], lengths).astype(bool)
    hinted = np.repeat([sequences[row].wrong_hint_ids is not None for row in rows], lengths).astype(bool)
    slots = np.where(taught, np.cumsum(taught) - 1, -1).astype(np.int64)

    def per_token(values: list[float]) -> Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values, dtype=np.float64), lengths)).to(device, dtype)

    behaviour = [value for row in rows for value in sequences[row].behaviour_logprobs]
    if old is not None and any(len(old[row]) != len(sequences[row].response_ids) for row in rows):
        raise TurnoutError("The old log-probs do not fit the sequences' response lengths.")
    whole = torch.zeros(num_tokens, dtype=dtype, device=device)
    aggregation = "token" if objective is None else objective.aggregation
    denominators = {"token": num_tokens, "sequence": len(rows), "constant": len(rows) * longest}
    return Layout(
        rows=rows,
        spans={row: slice(int(a), int(b)) for row, a, b in zip(rows, starts[:-1], starts[1:], strict=True)},
        num_tokens=num_tokens,
        targets=torch.tensor(
            [token for row in rows for token in sequences[row].response_ids], dtype=torch.int64, device=device
        ),
        behaviour=torch.tensor(behaviour, dtype=torch.float64).to(device, dtype),
        old=None if old is None else torch.cat([whole[:0], *(old[row].to(device, dtype) for row in rows)]),
        advantage=per_token([sequences[row].advantage for row in rows]),
        is_sdpo=per_token([float(sequences[row].route == "sdpo") for row in rows]) > 0,
        shares=per_token([1.0 / length for length in lengths]) if aggregation == "sequence" else None,
        denominator=float(denominators[aggregation]),
        begins=torch.from_numpy(np.repeat(starts[:-1], lengths)).to(device, torch.int64),
        owner=torch.from_numpy(np.repeat(np.arange(len(rows)), lengths)).to(device, torch.int64),
        sequence=whole.clone() if objective and objective.ratio == "sequence" else None,
        kept=whole > -1 if objective and objective.engine_mask == "sequence" else None,
        reference=whole.clone() if objective and objective.reference_kl_coefficient else None,
        slots=torch.from_numpy(slots).to(device),
        num_teacher_tokens=int(taught.sum()),
        is_hinted=torch.from_numpy(hinted[taught]).to(device),
        taught=taught,
        difficulty=per_token([sequences[row].difficulty for row in rows]),
        weights=torch.ones_like(whole),
        stats=TokenStatistics.zeros(num_tokens, dtype, device),
    )


@dataclass(frozen=True, slots=True)
class Visits:
    """Which sequences go through a model together, a list of indices a micro-batch."""

    batches: list[list[int]]
    num_needed_tokens: int
    """What the passes must compute: no padding, and of a common prefix no more than one if prefixes are shared."""
    share: bool
    """As prefix trees, or as padded rows."""
    reads: Reads

    def load(
        self, number: int, sequences: Sequence[TrainSequence], layout: Layout, device: torch.device
    ) -> tuple[PackedBatch, int]:
        """Micro-batch `number` and how many of its response tokens, the first ones, are not routed to SDPO.

        Numbers past the end give a dummy, for ranks with fewer micro-batches than others.
        """
        if number >= len(self.batches):
            return dummy_batch(device), 0
        rows = sorted(self.batches[number], key=lambda row: sequences[row].route == "sdpo")
        pack = pack_tree if self.share else pad_rows
        batch = pack(
            [_prompt(sequences[row], self.reads) for row in rows],
            [sequences[row].response_ids for row in rows],
            [layout.spans[row].start for row in rows],
            device,
        )
        return batch, sum(len(sequences[row].response_ids) for row in rows if sequences[row].route != "sdpo")


def _prompt(sequence: TrainSequence, reads: Reads) -> list[int]:
    """The prompt that a pass reads."""
    if reads == "question":
        return sequence.prompt_ids
    return (sequence.teacher_prompt_ids if reads == "solution" else sequence.wrong_hint_ids) or []


def visits(
    rows: Sequence[int],
    sequences: Sequence[TrainSequence],
    budget: int,
    *,
    share: bool,
    reads: Reads = "question",
) -> Visits:
    """Cut the sequences `rows` into micro-batches of at most `budget` computed tokens."""
    if not rows:
        return Visits([], 0, share, reads)
    pairs = [(_prompt(sequences[row], reads), sequences[row].response_ids) for row in rows]
    if share:
        tree = grow([[*prompt, *response[:-1]] for prompt, response in pairs])
        needed, batches = tree.num_nodes, plan_trees(tree, budget)
    else:
        lengths = [row_length(prompt, response) for prompt, response in pairs]
        needed, batches = sum(lengths), plan_rows(lengths, budget)
    return Visits([[rows[index] for index in batch] for batch in batches], needed, share, reads)

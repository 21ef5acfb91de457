"""Two gloo ranks against one: the same loss and gradients, whichever rank has which sequence."""

import pickle
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from services.contracts.run_config import RunConfig
from services.learner.packing.sequence import TrainSequence
from services.learner.update.scoring import old_logprobs
from services.learner.update.update import run_minibatch
from tests.services.learner.objectives.builders import PlainEngine, random_sequences, run_config, with_hints

CUTS = {"halves": slice(0, 10), "nothing-on-one": slice(0, 0), "all-sdpo-on-one": None}
OPTIONS: dict[str, dict[str, Any]] = {
    "ratios-by-sequence": {"ratio": "sequence", "reference_kl_coefficient": 0.1},
    "means-by-sequence": {"aggregation": "sequence", "dual_clip": 1.1, "keep_contrast": 0.5},
    "masks-by-sequence": {"engine_mask": "sequence", "engine_mask_low": 0.3, "engine_mask_high": 3.0},
    "wrong-hints": {"wrong_hint": 0.8},
    "weights": {"position_beta": 2.0, "question_weight": "difficulty", "weight_floor": 0.1},
}
CASES = list(product(OPTIONS, CUTS))


class GlooEngine(PlainEngine):
    """Gradients are summed over ranks in `step`. Counts forwards, to compare them between ranks."""

    num_ranks = 2

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.forwards = {"student": 0, "teacher": 0, "reference": 0}
        for name in self.forwards:
            getattr(self, name).register_forward_hook(lambda *_, name=name: self._count(name))

    def _count(self, name: str) -> None:
        self.forwards[name] += 1

    def _reduce(self, values: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
        result = values.clone()
        dist.all_reduce(result, operation)
        return result

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        return self._reduce(values, dist.ReduceOp.SUM)

    def all_reduce_max(self, values: torch.Tensor) -> torch.Tensor:
        return self._reduce(values, dist.ReduceOp.MAX)

    def step(self) -> float:
        for parameter in self.student.parameters():
            dist.all_reduce(parameter.grad)
        return super().step()


def case(options: str) -> tuple[list[TrainSequence], RunConfig]:
    sequences = random_sequences(8, 20)
    sequences = with_hints(sequences) if "wrong_hint" in OPTIONS[options] else sequences
    return sequences, run_config(tokens_per_microbatch=40, name="srpo", top_k=5, **OPTIONS[options])


def split(sequences: list[TrainSequence], cut: str, rank: int) -> list[TrainSequence]:
    if cut == "all-sdpo-on-one":
        return [item for item in sequences if (item.route == "sdpo") == (rank == 0)]
    first = sequences[CUTS[cut]]  # type: ignore[index]
    return first if rank == 0 else sequences[len(first) :]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for options, cut in CASES:
        engine = GlooEngine(rank)
        sequences, config = case(options)
        mine = split(sequences, cut, rank)
        old = old_logprobs(engine, mine, config)
        report = run_minibatch(engine, mine, old, config)
        found[options, cut] = (
            report.loss,
            report.sums,
            report.weight_counts,
            engine.gradients,
            engine.forwards,
            engine.num_backward,
        )
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], tuple]]:  # type: ignore[type-arg]
    folder = tmp_path_factory.mktemp("ranks")
    # Forked, because two more imports of everything would take most of the time.
    mp.start_processes(work, args=(str(folder),), nprocs=2, start_method="fork")  # type: ignore[attr-defined]
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


@pytest.mark.parametrize(("options", "cut"), CASES)
def test_two_ranks_compute_what_one_computes(
    options: str,
    cut: str,
    two_ranks: list[dict[tuple[str, str], tuple]],  # type: ignore[type-arg]
) -> None:
    sequences, config = case(options)
    engine = PlainEngine()
    expected = run_minibatch(engine, sequences, old_logprobs(engine, sequences, config), config)
    (loss, sums, counts, gradients, forwards, backwards), other = two_ranks[0][options, cut], two_ranks[1][options, cut]
    assert loss == pytest.approx(expected.loss, rel=1e-5)
    scale = max(float(value.abs().max()) for value in engine.gradients.values())
    for name, value in engine.gradients.items():
        assert float((gradients[name] - value).abs().max()) <= 1e-5 * scale, name
    assert (sums, counts, forwards, backwards) == (other[1], other[2], other[4], other[5])
    assert counts == expected.weight_counts
    for name in ("num_tokens", "num_sdpo_tokens", "num_teacher_rollouts", "denominator", "bounded_sum"):
        assert sums[name] == expected.sums[name]

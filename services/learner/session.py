"""What all ranks of a training program share: model, engine, and the work of one step. Knows nothing of Redis."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from services.contracts.run_config import RunConfig
from services.learner.broadcast import Step
from services.learner.checkpoint import FORMAT, Loaded, Snapshot, State
from services.learner.engine import DeepSpeedEngine
from services.learner.minibatch import MinibatchReport, old_logprobs, run_minibatch
from services.learner.optimizer_state import export_state, export_teacher, import_state, import_teacher
from services.learner.prepare import share_of_rank
from services.learner.ranks import Ranks
from services.learner.sequence import TrainSequence
from services.learner.weights import load_model, whole_weights


@dataclass(frozen=True, slots=True)
class Trained:
    """One step's reports, one an optimizer update, and where this rank's sequences stood in each mini-batch."""

    reports: list[MinibatchReport]
    shares: list[list[int]]


class TrainingSession:
    """The engine and what is done with it. All ranks call the methods in the same order."""

    def __init__(self, config: RunConfig, ranks: Ranks, checkpoint: Loaded | None, *, allow_remote_code: bool) -> None:
        self.config = config
        self.ranks = ranks
        load = partial(
            load_model,
            config.model,
            gradient_checkpointing=config.training.gradient_checkpointing,
            allow_remote_code=allow_remote_code,
        )
        torch.manual_seed(config.training.seed)
        model = load(config.model.path if checkpoint is None else str(checkpoint.model_path))
        initial = None if checkpoint is None else partial(load, config.model.path)
        self.engine = DeepSpeedEngine(config, model, ranks, initial)
        self.step = 0
        """Training steps done."""
        if checkpoint is not None:
            self._restore(checkpoint)

    def _restore(self, checkpoint: Loaded) -> None:
        import_state(self.engine, checkpoint.optimizer(), checkpoint.state.updates)
        teacher = checkpoint.teacher()
        if teacher:  # else the objective had none so far: the teacher starts as the checkpoint's student
            import_teacher(self.engine, teacher)
        torch.set_rng_state(checkpoint.random_state())
        self.step = checkpoint.state.step
        # A fork may have other steps and mini-batches than the run that wrote the checkpoint.
        updates_per_step = self.config.training.prompts_per_step // self.config.prompts_per_minibatch
        self.engine.num_updates = self.engine.updates + (self.config.training.steps - self.step) * updates_per_step

    def train(self, command: Step, details: Collection[int] = ()) -> Trained:
        """One training step. pi_old of every mini-batch is fixed before the first update.

        Args:
            details: indices into the first mini-batch whose tokens are wanted one by one.
        """
        shares = [share_of_rank(batch, self.engine.rank, self.engine.num_ranks) for batch in command.minibatches]
        mine = [[batch[index] for index in share] for batch, share in zip(command.minibatches, shares, strict=True)]
        with _TeacherOnDevice(self.engine):
            later = self._old(mine[1:])
            wanted = {shares[0].index(index) for index in details if index in shares[0]}
            reports = [run_minibatch(self.engine, mine[0], None, self.config, wanted)]
            for sequences, old in zip(mine[1:], later, strict=True):
                reports.append(run_minibatch(self.engine, sequences, old, self.config))
        self.step += 1
        return Trained(reports, shares)

    def _old(self, batches: Sequence[Sequence[TrainSequence]]) -> list[list[Tensor]]:
        """log pi_old of the later mini-batches, scored together so that passes are full."""
        if not batches:
            return []
        flat = [sequence for batch in batches for sequence in batch]
        scored = old_logprobs(self.engine, flat, self.config)
        result, start = [], 0
        for batch in batches:
            result.append(scored[start : start + len(batch)])
            start += len(batch)
        return result

    def weights(self) -> dict[str, Tensor]:
        """Whole weights on rank 0. Collective."""
        return whole_weights(self.engine.module, self.engine.rank)

    def snapshot(self, run_id: str, ledger: dict[str, int], weights: dict[str, Tensor]) -> Snapshot:
        """Copies of everything that a checkpoint holds; tensors on rank 0 only. Collective."""
        state = State(FORMAT, run_id, self.step, self.engine.updates, ledger)
        optimizer, teacher = export_state(self.engine), export_teacher(self.engine)
        return Snapshot(state, weights, optimizer, teacher, torch.get_rng_state())

    def save_model_files(self, folder: Path, tokenizer: object) -> None:
        """Configuration and tokenizer, in Hugging Face format."""
        model = self.engine.module
        model.config.save_pretrained(folder)  # type: ignore[union-attr,operator]
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder)  # type: ignore[union-attr,operator]
        tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]


class _TeacherOnDevice:
    """Brings an offloaded teacher to the device for the time of a step."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._ema = engine.ema

    def __enter__(self) -> None:
        if self._ema is not None:
            self._ema.to_passes()

    def __exit__(self, *_: object) -> None:
        if self._ema is not None:
            self._ema.to_rest()

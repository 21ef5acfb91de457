"""What all ranks of a training program share: model, engine and the work of one step. Independent of Redis."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from services.contracts.run_config import RunConfig
from services.learner.checkpoint import FORMAT, Loaded, Snapshot, State
from services.learner.groups.curriculum import CurriculumState
from services.learner.model import lora, quantized
from services.learner.model.check import write_files
from services.learner.model.engine import DeepSpeedEngine
from services.learner.model.export import load_model, whole_weights, write_safetensors, write_shards
from services.learner.model.fixed_teacher import load_teacher, source_of
from services.learner.model.forward import vocabulary_size
from services.learner.model.memory import peak_bytes
from services.learner.model.optimizer_state import export_state, export_teacher, import_state, import_teacher
from services.learner.model.parking import Parking
from services.learner.model.ranks import Ranks
from services.learner.objectives.teacher_gate import GateState
from services.learner.packing.sequence import TrainSequence
from services.learner.packing.shares import share_of_rank
from services.learner.program.commands import Step
from services.learner.update.engine import clock, numbers
from services.learner.update.scoring import old_logprobs
from services.learner.update.statistics import MinibatchReport
from services.learner.update.update import run_minibatch


@dataclass(frozen=True, slots=True)
class Trained:
    """One step's reports, one per optimizer update, and the indices of this rank's sequences in each mini-batch."""

    reports: list[MinibatchReport]
    shares: list[list[int]]
    peak_bytes: int
    """The most memory that a rank has held so far."""


class TrainingSession:
    """The engine and the operations on it. All ranks must call the methods in the same order."""

    def __init__(self, config: RunConfig, ranks: Ranks, checkpoint: Loaded | None, *, allow_remote_code: bool) -> None:
        self.config = config
        self.ranks = ranks
        load = partial(
            load_model,
            config.model,
            gradient_checkpointing=config.training.gradient_checkpointing,
            allow_remote_code=allow_remote_code,
            quantize=config.model.is_quantized,
        )
        teacher = load_teacher(config)
        self._teacher_source = source_of(config, teacher, None if checkpoint is None else checkpoint.state.teacher)
        torch.manual_seed(config.training.seed)
        student, self._base = _student(config, checkpoint, load)
        self.engine = DeepSpeedEngine(
            config,
            student,
            ranks,
            None if checkpoint is None else partial(load, config.model.path),
            teacher,
        )
        self.parking = Parking(self.engine, ranks.device)
        """Frees the device's memory while another process needs it (`rollout.share_gpu`)."""
        self.step = 0
        """Number of finished training steps."""
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens in the model's vocabulary."""
        return vocabulary_size(self.engine.student)

    def _restore(self, checkpoint: Loaded) -> None:
        import_state(self.engine, checkpoint.optimizer(), checkpoint.state.updates)
        teacher = checkpoint.teacher()
        if teacher:  # otherwise the objective had none so far, and the teacher starts as the checkpoint's student
            import_teacher(self.engine, teacher)
        torch.set_rng_state(checkpoint.random_state())
        self.step = checkpoint.state.step
        # A fork's mini-batches may differ from those of the run that wrote the checkpoint.
        self.engine.begun = (self.step, self.engine.updates)

    def train(self, command: Step, details: Collection[int] = ()) -> Trained:
        """Train one step. pi_old of every mini-batch is computed before the first update, in student passes whose time
        counts in the first report.

        Args:
            details: indices into the first mini-batch of the sequences to report token by token.
        """
        shares = [share_of_rank(batch, self.engine.rank, self.engine.num_ranks) for batch in command.minibatches]
        mine = [[batch[index] for index in share] for batch, share in zip(command.minibatches, shares, strict=True)]
        with _TeacherOnDevice(self.engine):
            began = clock(self.engine)
            if command.renew_teacher:
                self.engine.renew_teacher()
            later = self._old(mine[1:])
            scored = clock(self.engine)
            wanted = {shares[0].index(index) for index in details if index in shares[0]}
            reports = [run_minibatch(self.engine, mine[0], None, self.config, wanted)]
            for sequences, old in zip(mine[1:], later, strict=True):
                reports.append(run_minibatch(self.engine, sequences, old, self.config))
        reports[0] = replace(reports[0], seconds_train=reports[0].seconds_train + scored - began)
        self.step += 1
        peak = self.engine.all_reduce_max(numbers(self.engine, [peak_bytes(self.engine.device)]))
        return Trained(reports, shares, int(peak.item()))

    def _old(self, batches: Sequence[Sequence[TrainSequence]]) -> list[list[Tensor]]:
        """log pi_old of the later mini-batches, scored together to fill the passes."""
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
        """The weights to publish, whole on rank 0: all of them, or with `model.lora` the adapter's, unless its base is
        in 4 bits. Collective."""
        if self.config.model.lora is None:
            return whole_weights(self.engine.module, self.engine.rank)
        if self.config.model.is_quantized:
            return quantized.merged_weights(self.engine.module, self.engine.rank)
        return self._adapter()

    def _adapter(self) -> dict[str, Tensor]:
        return lora.file_names(whole_weights(self.engine.module, self.engine.rank, trained_only=True))

    @property
    def _publishes_adapter(self) -> bool:
        return self.config.model.lora is not None and not self.config.model.is_quantized

    def snapshot(
        self,
        run_id: str,
        ledger: dict[str, int],
        weights: dict[str, Tensor],
        curriculum: CurriculumState | None = None,
        teacher_gate: GateState | None = None,
    ) -> Snapshot:
        """Copies of everything that a checkpoint contains; tensors on rank 0 only. Collective."""
        state = State(
            FORMAT,
            run_id,
            self.step,
            self.engine.updates,
            ledger,
            curriculum,
            teacher_gate,
            self._teacher_source,
            self._base,
        )
        optimizer, teacher = export_state(self.engine), export_teacher(self.engine)
        adapter = {} if self._base is None else self._adapter()
        return Snapshot(state, weights, optimizer, teacher, torch.get_rng_state(), adapter)

    def write_published(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write what `weights` returned, in the files that rollout servers read."""
        if self._publishes_adapter:
            lora.write(folder, weights, self.engine.module)
        else:
            write_shards(folder, weights)

    def save_model(self, folder: Path, weights: Mapping[str, Tensor], tokenizer: object) -> None:
        """Write weights, configuration and tokenizer in Hugging Face format, or if the adapter is published, adapter
        and tokenizer in PEFT's format."""
        model = self.engine.module
        if self._publishes_adapter:
            tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
            lora.write(folder, weights, model)
            return
        write_files(folder, model, tokenizer)
        write_safetensors(folder, "model", weights)


def _student(
    config: RunConfig, checkpoint: Loaded | None, load: Callable[[str], nn.Module]
) -> tuple[nn.Module, str | None]:
    """The model to train, from the checkpoint if there is one, otherwise from `model.path`; and the digest of its base
    in 4 bits, if it has one."""
    if config.model.is_quantized:
        return _quantized_student(config, checkpoint, load)
    if config.model.lora is not None:
        model = lora.inject(load(config.model.path), config.model)
        if checkpoint is not None:
            lora.load(model, checkpoint.model_path)
        return model, None
    if checkpoint is None:
        return load(config.model.path), None
    lora.refuse_adapter(checkpoint.model_path, quantized_base=checkpoint.state.base is not None)
    return load(str(checkpoint.model_path)), None


def _quantized_student(
    config: RunConfig, checkpoint: Loaded | None, load: Callable[[str], nn.Module]
) -> tuple[nn.Module, str]:
    base = load(config.model.path)
    digest = quantized.digest_of_base(base)
    if checkpoint is not None:
        quantized.check_base(config.model.path, digest, checkpoint.state.base)
    model = lora.inject(base, config.model)
    if checkpoint is not None:
        lora.restore(model, checkpoint.adapter())
    return model, digest


class _TeacherOnDevice:
    """Brings an offloaded teacher to the device for the duration of a step."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._keeper = engine.keeper

    def __enter__(self) -> None:
        if self._keeper is not None:
            self._keeper.to_passes()

    def __exit__(self, *_: object) -> None:
        if self._keeper is not None:
            self._keeper.to_rest()

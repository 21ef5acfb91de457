"""The training engine: a Hugging Face model under DeepSpeed ZeRO 0-3, which implements `update.engine.Engine`.

DeepSpeed averages gradients over ranks and divides by its number of accumulation steps. The objectives need plain sums,
because they divide by counts of the whole mini-batch themselves. The loss is therefore multiplied by the number of
ranks, accumulation is controlled here, and the learning rate is set before each update (the schedule has no state).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import deepspeed
import torch
import torch.distributed as distributed
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from torch import Tensor, nn

from services.contracts import sizing
from services.contracts.errors import TurnoutError
from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.run_config import OptimizerSection, RunConfig
from services.learner.model.adamw import PiecewiseAdamW
from services.learner.model.ema import EmaTeacher, frozen
from services.learner.model.keeper import TeacherKeeper
from services.learner.model.ranks import Ranks
from services.learner.model.swap import AdapterTeacher, initial_model

# DeepSpeed knows optimizers by their exact class, and this one is torch's AdamW to the last bit.
ZERO_SUPPORTED_OPTIMIZERS.append(PiecewiseAdamW)

MAX_BUCKET = 500_000_000
"""Largest number of elements that DeepSpeed reduces at once; small models get buckets of their own size."""


def deepspeed_config(config: RunConfig, num_parameters: int, largest_parameter: int) -> dict[str, Any]:
    bucket = max(largest_parameter, min(MAX_BUCKET, num_parameters))
    values: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.gradient_clip,
        "zero_optimization": {
            "stage": sizing.stage(config),
            "overlap_comm": torch.cuda.is_available(),
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": min(bucket, 50_000_000),
            # No parameter may stay gathered between passes, because the teacher's update writes to the parts.
            "stage3_param_persistence_threshold": 0,
        },
    }
    if config.training.offload_optimizer:
        zero = values["zero_optimization"]
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        # torch's AdamW updates tensors in CPU memory as well, without a compiler.
        values["zero_force_ds_cpu_optimizer"] = False
    if config.model.dtype == "bfloat16":
        values["bf16"] = {"enabled": True}
        values["data_types"] = {"grad_accum_dtype": "fp32"}
    return values


def learning_rate(section: OptimizerSection, step: int, num_steps: int) -> float:
    """Learning rate of all optimizer updates in training step `step` (from 0) of `num_steps`: linear warm-up, then the
    schedule."""
    if step < section.warmup_steps:
        return section.learning_rate * (step + 1) / section.warmup_steps
    if section.schedule == "constant":
        return section.learning_rate
    left = (num_steps - step) / max(1, num_steps - section.warmup_steps)
    left = min(1.0, max(0.0, left))
    if section.schedule == "linear":
        return section.learning_rate * left
    return section.learning_rate * 0.5 * (1.0 - math.cos(math.pi * left))


def warmup_warning(config: RunConfig) -> str | None:
    """A warning if the warm-up is so much longer than the run that the model hardly learns; None otherwise."""
    section, steps = config.optimizer, config.training.steps
    if section.warmup_steps <= 10 * steps:
        return None
    highest = section.learning_rate * steps / section.warmup_steps
    return (
        f"optimizer.warmup_steps is {section.warmup_steps}, but the run has only {steps} training steps, so the "
        f"learning rate never exceeds {highest:.1e}. Lower optimizer.warmup_steps."
    )


class NumericalError(TurnoutError):
    """Gradients are not finite; the run fails."""


class DeepSpeedEngine:
    """Student, optimizer and, if the objective needs them, teacher and frozen initial model.

    All ranks must call the methods in the same order. No method waits for anything outside the process group.
    """

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        ranks: Ranks,
        initial: Callable[[], nn.Module] | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        """Take over `model`, which must have the same weights on all ranks, be in `model.dtype`, and with `model.lora`
        have its adapter. `initial` loads the run's initial model if `model` has been trained already. `teacher` is that
        of `objective.teacher_path`, in `model.dtype`; None: the objective's teacher, if any, is the self-teacher."""
        self.config = config
        self.rank = ranks.rank
        self.num_ranks = ranks.num_ranks
        self.device: torch.device = ranks.device
        self.updates = 0
        """Number of optimizer updates since the run began."""
        self.begun = (0, 0)
        """Number of training steps and of optimizer updates done when this engine took over."""
        self.last_learning_rate = 0.0
        """Learning rate of the last update."""
        self.stage = sizing.stage(config)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in parameters]
        settings = deepspeed_config(config, sum(sizes), max(sizes))
        taught = OBJECTIVES[config.objective.name].has_teacher and teacher is None
        referred = bool(config.objective.reference_kl_coefficient)
        self.ema: EmaTeacher | None = None
        """The self-teacher."""
        self.reference: nn.Module | None = None
        if config.model.lora is None:
            if taught:
                self.ema = EmaTeacher.of(model, config, self.device, self.stage, settings)
            if referred:
                first = copy.deepcopy(model) if initial is None else initial()
                self.reference = frozen(first, self.device, self.stage, settings)
        fixed: TeacherKeeper | None = None
        if teacher is not None:
            whole = frozen(teacher, self.device, self.stage, settings)
            fixed = TeacherKeeper(whole, self.device, offload=config.training.offload_teacher)
            fixed.to_rest()
        self._deepspeed = _initialise(model, parameters, settings, config.optimizer)
        if self.stage == 0 and self.num_ranks == 1:
            # DeepSpeed would copy all gradients into buffers and back, to sum them over one rank.
            self._deepspeed.enable_backward_allreduce = False
        self.student: nn.Module = self._deepspeed
        if config.model.lora is not None:
            if taught:
                self.ema = AdapterTeacher(self._deepspeed, config.objective.teacher_ema_rate, self.device)
            self.reference = initial_model(self._deepspeed) if referred else None
        elif self.ema is not None:
            self.ema.attach(self.module)
        self.keeper: TeacherKeeper | None = fixed or self.ema
        self.teacher: nn.Module | None = None if self.keeper is None else self.keeper.model

    @property
    def module(self) -> nn.Module:
        """The wrapped Hugging Face model."""
        return cast(nn.Module, self._deepspeed.module)

    @property
    def optimizer(self) -> Any:
        """DeepSpeed's optimizer; `optimizer_state` depends on its internals."""
        return self._deepspeed.optimizer

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return learning_rate(self.config.optimizer, self._position()[0], self.config.training.steps)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Backward pass of one micro-batch; see `update.engine.Engine`."""
        self._deepspeed.set_gradient_accumulation_boundary(last)
        self._deepspeed.backward(loss * self.num_ranks, scale_wrt_gas=False)

    def step(self) -> float:
        """Clip the gradients, update the weights and move the teacher. Returns the gradient norm before clipping.

        Raises:
            NumericalError: the norm is not finite.
        """
        self.last_learning_rate = self.learning_rate
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = self.last_learning_rate
        norm = self._plain_norm() if self.stage == 0 else None
        if norm is not None:
            _refuse_non_finite(norm)  # before the update, so that the weights stay finite
        self._deepspeed.step()
        if norm is None:
            norm = float(self._deepspeed.get_global_grad_norm())
            _refuse_non_finite(norm)
        self.updates += 1
        self._move_teacher()
        return norm

    def _move_teacher(self) -> None:
        """After each update by the moving average; or, after the last one of a step, as a copy."""
        section, (step, is_new) = self.config.objective, self._position()
        if self.ema is None or section.teacher_update in ("frozen", "gated"):
            return
        if section.teacher_update == "ema":
            self.ema.update()
        elif is_new and step % section.teacher_every_steps == 0:
            self.renew_teacher()

    def renew_teacher(self) -> None:
        """Make the teacher a copy of the student."""
        assert self.ema is not None
        self.ema.update(1.0)

    def _position(self) -> tuple[int, bool]:
        """Training steps done, and whether the next update begins a new one."""
        steps, updates = self.begun
        updates_per_step = self.config.training.prompts_per_step // self.config.prompts_per_minibatch
        whole, rest = divmod(self.updates - updates, updates_per_step)
        return steps + whole, rest == 0

    def _plain_norm(self) -> float:
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        return self._all_reduce(values, distributed.ReduceOp.SUM)

    def all_reduce_max(self, values: Tensor) -> Tensor:
        return self._all_reduce(values, distributed.ReduceOp.MAX)

    def _all_reduce(self, values: Tensor, operation: Any) -> Tensor:
        result = values.detach().clone()
        if self.num_ranks > 1:
            distributed.all_reduce(result, op=operation)
        return result


def _refuse_non_finite(norm: float) -> None:
    if not math.isfinite(norm):
        raise NumericalError(
            f"The gradient norm is {norm}.",
            remedy="Lower optimizer.learning_rate or set model.dtype to float32. The last checkpoint is intact.",
        )


def _initialise(
    model: nn.Module, parameters: list[nn.Parameter], settings: dict[str, Any], section: OptimizerSection
) -> Any:
    on_gpu = torch.cuda.is_available()
    optimizer = (torch.optim.AdamW if on_gpu else PiecewiseAdamW)(
        parameters,
        lr=section.learning_rate,
        betas=section.betas,
        eps=section.epsilon,
        weight_decay=section.weight_decay,
        fused=on_gpu or None,
    )
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine
